"""``imagewarden policy diff``: what differs between two versions of a policy, in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from worker.authoring.consequences import consequences
from worker.authoring.diff import Change, changes
from worker.commands.render import Format
from worker.errors import Misconfigured
from worker.policy import Policy
from worker.policy_yaml import load_policy, parse_policy

_STANDARD_INPUT: Final = Path("-")
_SIGNS: Final = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


class Differs(IntEnum):
    """What it ends with, as diff(1) does: 2 is trouble."""

    NO = 0
    YES = 1


def diff(old_file: Path, new_file: Path, format: Format) -> Differs:
    """Prints what changed, and what that is certain to come to."""
    if old_file == new_file == _STANDARD_INPUT:
        raise Misconfigured("only one of the two can come from standard input; name a file")
    old = _read(old_file, beside=new_file)
    new = _read(new_file, beside=old_file)
    found, sentences = changes(old, new), consequences(old, new)
    if format is Format.JSONL:
        for change in found:
            line = {"kind": change.kind, **asdict(change)}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        for sentence in sentences:
            line = {"kind": "consequence", "sentence": sentence}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
        _print(f"{old_file} → {new_file}", found, sentences)
    return Differs.YES if found else Differs.NO


def _read(file: Path, beside: Path) -> Policy:
    """Of standard input, what it names is looked for beside the other file."""
    if file == _STANDARD_INPUT:
        raw = sys.stdin.buffer.read()
        return parse_policy(raw, str(beside.parent / "standard input"), unsolved=True)
    return load_policy(file, unsolved=True)


def _print(title: str, found: Sequence[Change], sentences: Sequence[str]) -> None:
    # Wrapped by the terminal, so that a line that is copied is one
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(title, "bold"))
    if not found:
        console.print("the same policy")
    for where, of in groupby(found, key=lambda change: change.where):
        console.print(Text(f"\n{where}", "bold"))
        for change in of:
            sign, colour = _SIGNS[change.kind]
            console.print(Text(f"  {sign} {_said(change)}", colour))
    if sentences:
        console.print(Text("\nwhat is certain", "bold"))
        for sentence in sentences:
            console.print(Text(f"  {sentence}"))


def _said(change: Change) -> str:
    # that a text weighs as much as others do goes without saying
    written = [value for value in (change.old, change.new) if value not in (None, "")]
    if change.kind != "changed":
        written = [value for value in written if value not in ("weight 1", change.where)]
    return f"{change.what}: {' → '.join(map(str, written))}" if written else change.what
