"""Environment and file to frozen settings; what is wrong with them, in sentences.

Unknown names are refused, in the file and in the environment: a typo must not mean the default.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.errors import Misconfigured
from worker.settings import CONFIG_VARIABLE, PREFIX, Settings


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this process; ``overrides`` (of the command line) win over all.

    Raises ``Misconfigured`` with a sentence for each wrong setting, naming the variable.
    """
    _refuse_unknown_variables()
    file = os.environ.get(CONFIG_VARIABLE)
    if file and not Path(file).is_file():
        raise Misconfigured(f"{CONFIG_VARIABLE} names {file}, which is not a file")
    try:
        return Settings(**(overrides or {}))
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{file} is not TOML: {error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise Misconfigured("\n".join(_sentence(problem) for problem in problems)) from None


def _sentence(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"] if isinstance(part, str)]
    known = list(variables())
    name = PREFIX + "__".join(location).upper()
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(location)} is no setting{_nearest(name, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{name} is wrong: {message}"


def variables() -> Iterator[str]:
    """The environment variable of each setting."""
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            for inner in annotation.model_fields:
                yield f"{PREFIX}{name}__{inner}".upper()
        else:
            yield f"{PREFIX}{name}".upper()


def _refuse_unknown_variables() -> None:
    known = {*variables(), CONFIG_VARIABLE}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise Misconfigured(f"{name} is no setting{_nearest(name, sorted(known))}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {near[0]}?" if near else "; README.md lists them"
