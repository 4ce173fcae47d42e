"""``imagewarden settings show``: what is in force, and where each value came from."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from pydantic import BaseModel, SecretStr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.commands.render import Format
from worker.settings import CONFIG_VARIABLE, PREFIX, Settings

MASK = "***"
_ENVIRONMENT = "environment variable"

#: Whatever is not plainly one of these is not shown at all: in a password that is not
#: percent-encoded, anything can look like a host.
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<user>[^@/?#]*@)?"
    r"(?P<place>(?:[\w.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[0-9]*)?)(?P<query>\?[^@]*)?",
    re.A | re.I,
)
_SOCKET = re.compile(r"(?P<scheme>unix)://(?P<user>)(?P<place>/[^@?#]*)(?P<query>\?[^@]*)?", re.A)


class Shown(NamedTuple):
    """``value`` is JSON's, with secrets masked."""

    variable: str
    value: Any
    origin: str


def show_settings(settings: Settings, format: Format, *, changed: bool) -> None:
    """Prints each, or only those that are ``changed``: that something sets."""
    rows = [each for each in in_force(settings) if not changed or each.origin != "default"]
    if format is Format.JSONL:
        for variable, value, origin in rows:
            typer.echo(json.dumps({"variable": variable, "value": value, "from": origin}))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for variable, value, origin in rows:
        style = "dim" if origin == "default" else ""
        # The variable is the setting's own name, but for case
        told = "environment" if origin.startswith(_ENVIRONMENT) else origin
        table.add_row(variable.removeprefix(PREFIX), Text(_told(value)), told, style=style)
    # In a pipe there is no width to fit into
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def in_force(settings: Settings) -> Iterator[Shown]:
    file = os.environ.get(CONFIG_VARIABLE)
    written = tomllib.loads(Path(file).read_text()) if file else {}
    given = {name.upper(): name for name in os.environ}
    for path, value in _leaves(settings):
        variable = PREFIX + "__".join(path).upper()
        if variable in given:
            origin = f"{_ENVIRONMENT} {given[variable]}"
        elif _has(written, path):
            origin = f"{file}: {'.'.join(path)}"
        else:
            origin = "default"
        yield Shown(variable, _masked(path, value), origin)


def masked_url(url: str) -> str:
    """Scheme, host, port and database of it, where they can be told for certain: user, password
    and what stands behind ``?`` are masked."""
    written = _URL.fullmatch(url) or _SOCKET.fullmatch(url)
    if written is None:
        return MASK
    user = f"{MASK}@" if written["user"] else ""
    query = f"?{MASK}" if written["query"] else ""
    return f"{written['scheme']}://{user}{written['place']}{query}"


def _leaves(settings: Settings) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in settings:
        if isinstance(value, BaseModel):
            for inner, setting in value:
                yield (name, inner), setting
        else:
            yield (name,), value


def _masked(path: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, SecretStr):
        is_url = path in (("redis", "url"), ("fetch", "egress_proxy"))
        return masked_url(value.get_secret_value()) if is_url else MASK
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _has(written: dict[str, Any], path: tuple[str, ...]) -> bool:
    *sections, name = path
    for section in sections:
        written = written.get(section, {})
    return name in written


def _told(value: Any) -> str:
    match value:
        case None | []:
            return "unset"
        case list(values):
            return ",".join(map(str, values))
        case float(number) if number.is_integer():
            return str(int(number))
        case other:
            return str(other)
