"""Verdicts for people (a table) and for programs (JSON lines), and the exit code they come to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import IntEnum, StrEnum

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from worker.schema import Verdict
from worker.verdicts import deciding


class Exit(IntEnum):
    """What the process ends with. Where several apply, the highest."""

    ALL_ALLOWED = 0
    NOT_ALL_ALLOWED = 1
    USAGE = 2
    NOT_EXAMINED = 3
    FAILED = 70  # EX_SOFTWARE of sysexits.h


class Format(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"


def chosen(format: Format | None) -> Format:
    """What was asked for; by itself, a table on a terminal and JSON lines in a pipe."""
    return format or (Format.TABLE if sys.stdout.isatty() else Format.JSONL)


COLOURS = {"allow": "green", "review": "yellow", "block": "red", "undetermined": "magenta"}


def exit_code(verdicts: Iterable[Verdict]) -> Exit:
    worst = Exit.ALL_ALLOWED
    for verdict in verdicts:
        if verdict.decision == "undetermined":
            return Exit.NOT_EXAMINED
        if verdict.action != "allow":
            worst = Exit.NOT_ALL_ALLOWED
    return worst


def verdict_table(verdicts: Iterable[tuple[str, Verdict | str]], title: str | None = None) -> Table:
    """A row for each name; a string in place of a verdict says why there is none."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("image", overflow="fold", ratio=3)
    table.add_column("decision", min_width=len("undetermined"))
    table.add_column("category", overflow="fold", ratio=2)
    table.add_column("prob.", justify="right", no_wrap=True)
    table.add_column("loudest prompt, or what went wrong", overflow="fold", ratio=4)
    table.add_column("cache", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for name, verdict in verdicts:
        table.add_row(Text(name), *_cells(verdict))
    return table


def _cells(verdict: Verdict | str) -> tuple[Text | str, ...]:
    if isinstance(verdict, str):
        return (Text("none", style="bold red"), "", "", Text(verdict), "", "")
    decision = Text(verdict.decision, style=COLOURS[verdict.decision])
    if verdict.decision != verdict.action:
        decision.append(f" → {verdict.action}", style=COLOURS[verdict.action])
    if verdict.brake is not None:
        decision.append(" (braked)", style=COLOURS["block"])
    milliseconds = f"{verdict.timings_ms['total']:.0f}"
    if verdict.error is not None:
        why = Text(f"{verdict.error.code}: {verdict.error.detail}", style="dim")
        return (decision, "", "", why, verdict.cache, milliseconds)
    if verdict.listed is not None:
        near = f"{verdict.listed.distance} of 256 bits from a hash on the list"
        name = Text(f"list {verdict.listed.id}")
        return (decision, name, "", near, verdict.cache, milliseconds)
    category = deciding(verdict)
    if category is None:
        return (decision, "", "", "", verdict.cache, milliseconds)
    return (
        decision,
        Text(category.id, style="" if verdict.decision != "allow" else "dim"),
        f"{category.probability:.2f}",
        Text(
            category.loudest_for or "(its head)", style="" if verdict.decision != "allow" else "dim"
        ),
        verdict.cache,
        milliseconds,
    )


def print_verdicts(verdicts: Iterable[tuple[str, Verdict]], format: Format) -> None:
    """To standard output: JSON lines as they come, or one table at the end."""
    if format is Format.JSONL:
        for _, verdict in verdicts:
            sys.stdout.write(verdict.model_dump_json() + "\n")
            sys.stdout.flush()
    else:
        # In a pipe there is no width to fit into
        Console(width=None if sys.stdout.isatty() else 160).print(verdict_table(verdicts))


def progress_bar() -> Progress:
    """On standard error, and only where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
