"""``imagewarden simulate``: a day of a fleet, with and without the cache and scaling."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker.commands.plan import rates_from
from worker.commands.render import Format
from worker.planning import Rates
from worker.simulation import (
    STEP_SECONDS,
    Arrivals,
    Day,
    Machine,
    Repeats,
    Scaling,
    Series,
    fixed_fleet,
    simulate,
)

_POINTS = 240  # of a line in a picture; each is the most of its six minutes


@dataclass(frozen=True, slots=True)
class Variant:
    cache: bool
    fleet: str
    day: Day
    cost: float


def show_simulation(
    arrivals: Arrivals,
    repeats: Repeats,
    machine: Machine,
    scaling: Scaling,
    model: str,
    report: Path | None,
    given: Mapping[str, float | str],
    format: Format,
    page: Path | None,
) -> None:
    """Prints what was assumed and what came of it; ``page`` is a file for it as HTML, with
    pictures. Raises ``Misconfigured``, as where a rate is neither in the report nor given."""
    if page:
        from worker.authoring.html import check_place, write_page

        check_place(page)
    rates = rates_from(model, report, given)
    variants = _variants(arrivals, repeats, machine, scaling, rates)
    assumed = _assumptions(arrivals, repeats, machine, scaling, rates)
    if page:
        write_page(page, _page(variants, assumed))
    if format is Format.JSONL:
        for variant in variants:
            typer.echo(json.dumps(_summary(variant)))
        return
    # In a pipe there is no width to fit into
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("assumed", "", box=SIMPLE_HEAD, pad_edge=False)
    for name, value in assumed:
        table.add_row(name, value)
    console.print(table)
    # A column for each fleet: there are fewer of them than of figures
    table = Table(show_header=False, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column(no_wrap=True)
    summaries = [_summary(variant) for variant in variants]
    for _ in summaries:
        table.add_column(justify="right")
    for name in summaries[0]:
        table.add_row(name, *(_cell(summary[name]) for summary in summaries))
    console.print(table)


def _variants(
    arrivals: Arrivals, repeats: Repeats, machine: Machine, scaling: Scaling, rates: Rates
) -> Sequence[Variant]:
    found = []
    for cache, remembered in ((True, repeats), (False, repeats.without_cache())):
        _, per_machine = machine.limit(remembered, rates)
        fleets = {
            "fixed": fixed_fleet(arrivals, per_machine),
            "by lag": dataclasses.replace(scaling, busy=0.0),
            "by lag and rate": scaling,
        }
        for name, fleet in fleets.items():
            day = simulate(arrivals, remembered, machine, rates, fleet)
            found.append(Variant(cache, name, day, day.machine_hours * machine.hourly_price))
    return found


_WORDS = ("cache", "fleet", "limit")


def _summary(variant: Variant) -> dict[str, str | float]:
    day = variant.day
    return {
        "cache": "yes" if variant.cache else "no",
        "fleet": variant.fleet,
        "machines, least": float(day.machines.min()),
        "machines, mean": float(day.machines.mean()),
        "machines, most": float(day.machines.max()),
        "machine hours": day.machine_hours,
        "cost": variant.cost,
        "most waiting": float(day.lag.max()),
        "wait p50, s": day.wait_percentile(0.5),
        "wait p99, s": day.wait_percentile(0.99),
        "wait p99.9, s": day.wait_percentile(0.999),
        "limit": day.limit,
    }


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or value.is_integer() else f"{value:,.1f}"


def _assumptions(
    arrivals: Arrivals, repeats: Repeats, machine: Machine, scaling: Scaling, rates: Rates
) -> Sequence[tuple[str, str]]:
    coming = arrivals.per_second()
    parts = (arrivals, repeats, machine, scaling, rates)
    return [
        *(
            (f"{type(part).__name__.lower()}: {name.replace('_', ' ')}", _told(value))
            for part in parts
            for name, value in dataclasses.asdict(part).items()
        ),
        ("so: requests/s, mean and most", f"{coming.mean():,.0f}, {coming.max():,.0f}"),
        ("so: answered without a download", f"{repeats.cached:.1%}"),
        ("so: downloaded and known", f"{repeats.known:.1%}"),
        *(
            (f"so: a machine's requests/s by {name}", f"{limit:,.0f}")
            for name, limit in machine.limits(repeats, rates).items()
        ),
    ]


def _told(value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _page(variants: Sequence[Variant], assumed: Sequence[tuple[str, str]]) -> str:
    from worker.authoring.axes import counts
    from worker.authoring.charts import Line, Tone, chart
    from worker.authoring.html import render

    across = dataclasses.replace(counts("hour of the day", 24), high=24, ticks=_HOURS)
    tones: dict[str, Tone] = {"fixed": "a", "by lag": "b", "by lag and rate": "c"}
    cached = [variant for variant in variants if variant.cache]

    def line(values: Series, tone: Tone, name: str | None) -> Line:
        parts = np.array_split(values, _POINTS)
        each = len(values) / _POINTS * STEP_SECONDS / 3600
        points = [((n + 0.5) * each, float(part.max())) for n, part in enumerate(parts)]
        return Line(points, tone, name)

    drawn = {
        "Requests a second": [line(cached[0].day.arrivals, "d", None)],
        "Machines at work": [
            line(each.day.machines, tones[each.fleet], each.fleet) for each in cached
        ],
        "Seconds that a request waits": [
            line(each.day.waits, tones[each.fleet], each.fleet) for each in cached
        ],
    }
    charts = []
    for name, lines in drawn.items():
        up = counts("", max(y for each in lines for _, y in each.points))  # the caption names it
        charts.append((name, chart(name, f"{name}, over a day.", across, up, lines)))
    rows = [[_cell(value) for value in _summary(variant).values()] for variant in variants]
    return render(
        "day.html.j2",
        charts=charts,
        columns=list(_summary(variants[0])),
        words=_WORDS,
        rows=rows,
        assumptions=assumed,
        zip=zip,
    )


_HOURS = [(hour, f"{hour}") for hour in range(0, 25, 4)]
