"""YAML values that know where they stand in their file, so that a refusal can say where.

Every reader of a ``Located`` value (``text``, ``number``, ``items``, ...) notes a problem where the
value is not what it should be, and goes on with a neutral one: one reading finds all that is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

ABSENT: Final = object()
MAX_BYTES: Final = 1024 * 1024
"""Far above any policy written by hand; the loader is slow, and what it loads fits in memory."""

Option = TypeVar("Option", bound=str)


class Problem(NamedTuple):
    """What is wrong at a place of a file, and what to do. Lines and columns count from 1."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class Located:
    """A value, what messages call it, and where it stands. ``ABSENT`` reads as every default."""

    value: object
    name: str
    line: int
    column: int
    note: Callable[[int, int, str], None] = field(repr=False)

    @property
    def present(self) -> bool:
        return self.value is not ABSENT

    def refuse(self, message: str) -> None:
        self.note(self.line, self.column, message)

    def text(self) -> str:
        """Without white space at its ends; "" where it is absent or refused."""
        if not isinstance(self.value, str):
            self._wrong("a text (put it in quotes if it is one)")
            return ""
        if not (text := str(self.value).strip()):
            self.refuse(f"{self.name} is empty; write a text or remove it")
        return text

    def number(self, low: float, high: float) -> float | None:
        """From ``low`` to ``high``; None where it is absent or refused."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool | ScalarBoolean):
            self._wrong(f"a number from {low:g} to {high:g}")
            return None
        if not low <= self.value <= high:  # nor is NaN
            self.refuse(
                f"{self.name} is {_shown(self.value)}; write a number from {low:g} to {high:g}"
            )
            return None
        return float(self.value)

    def integer(self, low: int, high: int, *, default: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool | ScalarBoolean):
            self._wrong(f"a whole number from {low} to {high}")
            return default
        if not low <= self.value <= high:
            self.refuse(
                f"{self.name} is {_shown(self.value)}; write a whole number from {low} to {high}"
            )
            return default
        return int(self.value)

    def flag(self) -> bool:
        """False where it is absent or refused."""
        if not isinstance(self.value, bool | ScalarBoolean):
            self._wrong("true or false")
            return False
        return bool(self.value)

    def choice(self, options: Sequence[Option]) -> Option:
        """One of ``options``; the first is the default."""
        for option in options:
            if self.value == option:
                return option
        if self.present:
            shown = f"`{self.value}`" if isinstance(self.value, str) else _kind(self.value)
            self.refuse(f"{self.name} is {shown}; write one of: {', '.join(options)}")
        return options[0]

    def items(self, *, at_most: int) -> list[Located]:
        """The items of a list that, where it is present, is not empty."""
        if not isinstance(self.value, list):
            self._wrong("a list")
            return []
        if not self.value:
            self.refuse(f"{self.name} is an empty list; add an item or remove the key")
        if len(self.value) > at_most:
            self.refuse(f"{self.name} has {len(self.value)} items; at most {at_most} are allowed")
            return []
        return [
            self._at(_place(self.value, index), item, f"item {index + 1} of {self.name}")
            for index, item in enumerate(self.value)
        ]

    def entries(self) -> list[tuple[Located, Located]]:
        """The keys of a mapping that, where it is present, is not empty, each with its value."""
        if not isinstance(self.value, Mapping):
            self._wrong("a mapping (`key: value` lines)")
            return []
        if not self.value:
            self.refuse(f"{self.name} is an empty mapping; add a key or remove it")
        found = []
        for key, value in self.value.items():
            place = _place(self.value, key)
            at_key = self._at(place[:2], key, f"key {_shown(key)}")
            if isinstance(key, str) and key.strip():
                found.append((at_key, self._at(place[2:], value, f"`{key}`")))
            else:
                at_key.refuse(f"the key {_shown(key)} is not a text; put it in quotes")
        return found

    def fields(
        self, *, required: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> dict[str, Located]:
        """A value for every required and optional key, ``ABSENT`` where it is not written."""
        required = tuple(required)
        known = (*required, *optional)
        found = {key: self._at((), ABSENT, f"`{key}`") for key in known}
        for key, value in self.entries():
            if (name := str(key.value)) in found:
                found[name] = value
            elif close := difflib.get_close_matches(name, known, n=1):
                key.refuse(f"unknown key `{name}`; did you mean `{close[0]}`?")
            else:
                key.refuse(f"unknown key `{name}`; known here: {', '.join(known)}")
        if isinstance(self.value, Mapping):
            for name in required:
                if not found[name].present:
                    self.refuse(f"{self.name} has no `{name}`; add it")
        return found

    def _at(self, place: Sequence[int], value: object, name: str) -> Located:
        # what a merge key (`<<`) brought has no place here: its mapping's stands in
        line, column = (place[0] + 1, place[1] + 1) if place else (self.line, self.column)
        return Located(value, name, line, column, self.note)

    def _wrong(self, expected: str) -> None:
        if self.present:
            self.refuse(f"{self.name} is {_kind(self.value)}; write {expected}")


def read_yaml(raw: bytes, path: str, name: str, problems: list[Problem]) -> Located:
    """The one document of a file; messages call it ``name``. Problems are added to ``problems``,
    now and by whoever reads the value; a file that is no YAML reads as ``ABSENT``."""

    def note(line: int, column: int, message: str) -> None:
        problems.append(Problem(path, line, column, message))

    return Located(_load(raw, note), name, 1, 1, note)


def _load(raw: bytes, note: Callable[[int, int, str], None]) -> object:
    if len(raw) > MAX_BYTES:
        note(1, 1, f"the file is larger than {MAX_BYTES} bytes; split it into several policies")
        return ABSENT
    try:
        return YAML(typ="rt", pure=True).load(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = error.start - before.rfind(b"\n")
        note(before.count(b"\n") + 1, column, "this is not UTF-8; save the file as UTF-8")
    except DuplicateKeyError as error:
        key = error.problem.partition(" with value ")[0].removeprefix("found duplicate key ")
        note(*_mark(error), f"the key {key} is written twice in one mapping; remove one")
    except MarkedYAMLError as error:
        said = ", ".join(filter(None, (error.context, error.problem)))
        note(*_mark(error), f"this is not YAML: {said}")
    except YAMLError as error:
        note(1, 1, f"this is not YAML: {' '.join(str(error).split())}")
    except RecursionError:
        note(1, 1, "the file is nested too deeply; a policy needs no more than six levels")
    # A scalar tagged as a type that it is not, an endless number, or one without digits (0x_)
    except (ValueError, LookupError) as error:
        note(1, 1, f"a value could not be read: {error}")
    return ABSENT


def _mark(error: MarkedYAMLError) -> tuple[int, int]:
    mark = error.problem_mark or error.context_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _place(container: object, key: object) -> Sequence[int]:
    """Zero-based [line, column] of an item, or of a key and of its value."""
    if isinstance(container, CommentedBase):
        places: Mapping[object, Sequence[int]] = container.lc.data or {}
        return places.get(key, ())
    return ()


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no more than 4300 digits; in base 8 more can be written
        return "endless"


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool | ScalarBoolean):
        return "true or false"
    kinds = ((str, "a text"), (int | float, "a number"), (list, "a list"), (Mapping, "a mapping"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "of another type")
