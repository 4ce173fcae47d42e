"""``imagewarden bench``: what the service does on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from worker.bench.measure import measure, report_of, set_up, warn_of_worse
from worker.bench.report import markdown
from worker.bench.results import write_report
from worker.bench.scenarios import SCENARIOS
from worker.settings import Settings


def bench(
    settings: Settings,
    names: Sequence[str],
    *,
    policy: Path | None,
    rounds: int,
    quick: bool,
    json: Path | None,
) -> None:
    """Prints a table; no name means all of them. Raises ``Misconfigured``, and ``RuntimeError``
    where the service answers wrongly."""
    with set_up(settings, policy, quick=quick) as setup:
        results = measure(setup, names or list(SCENARIOS), 1 if quick else rounds, _say)
    if quick:
        typer.echo(f"{len(results)} scenarios work; what they found in a moment is no measurement")
        return
    report = report_of(results)
    typer.echo(markdown(report), nl=False)
    if json:
        warn_of_worse(report, json)
        write_report(report, json)


def _say(told: str) -> None:
    typer.echo(told, err=True)
