"""``imagewarden plan``: what a load needs, from what was measured."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker import bench
from worker.bench.results import read_report
from worker.commands.render import Format
from worker.errors import Misconfigured
from worker.planning import Line, Load, Rates, plan, rates_of

#: The report that came with this package.
SHIPPED = Path(bench.__file__).with_name("measured.json")

#: How to give what a report lacks.
_OPTIONS = {
    "model_per_second": "--model-rate",
    "core_ms": "--core-ms",
    "process_per_second": "--process-rate",
    "cached_per_second": "--cached-rate",
}


def show_plan(
    load: Load, model: str, report: Path | None, given: Mapping[str, float | str], format: Format
) -> None:
    """Prints what it takes. ``given`` are fields of ``Rates`` that count for more than the
    report's. Raises ``Misconfigured`` where one is in neither."""
    lines = plan(load, rates_from(model, report, given))
    if format is Format.JSONL:
        for line in lines:
            typer.echo(json.dumps(dataclasses.asdict(line), ensure_ascii=False))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("needed", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for line in lines:
        table.add_row(line.what, _amount(line), Text(line.because, style="dim"))
    # In a pipe there is no width to fit into
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def rates_from(model: str, report: Path | None, given: Mapping[str, float | str]) -> Rates:
    """The report's, or those that are given in place of them. Raises ``Misconfigured``."""
    path = report or (SHIPPED if SHIPPED.is_file() else None)
    fields = {**(rates_of(read_report(path), model) if path else {}), **given}
    if missing := [option for field, option in _OPTIONS.items() if field not in fields]:
        lacks = f"{path} does not tell" if path else "no report was given that tells"
        raise Misconfigured(
            f"{lacks} what would be {', '.join(missing)} for {model}: measure with "
            "`imagewarden bench --json` and give the file as --rates, or give the numbers"
        )
    return Rates(model=model, **fields)  # type: ignore[arg-type]


def _amount(line: Line) -> str:
    number = f"{line.needed:,}" if isinstance(line.needed, int) else f"{line.needed:,.4g}"
    return f"{number} {line.unit}".rstrip()
