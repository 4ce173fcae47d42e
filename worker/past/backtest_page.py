"""The page that ``policy backtest --report`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from worker.authoring.axes import Axis, shares
from worker.authoring.charts import Dots, Line, Mark, Tone, chart
from worker.authoring.html import render
from worker.authoring.quantities import counted, percent
from worker.authoring.results import Interval
from worker.past.backtest import DIRECTIONS, Backtest, Day, Group
from worker.past.window import Window
from worker.policy import Policy

_TICKS: Final = 7
_APART: Final = 0.12  # of a day, so that neither side hides the other


def backtest_page(
    found: Backtest,
    policies: Sequence[Policy],
    window: Window | None,
    pictures: Sequence[bytes | str | None],
) -> str:
    """``policies`` are the new one and, where there is one, the one it is held against;
    ``pictures`` belong to the first that are shown: a JPEG, or why there is none."""
    new, *against = policies
    shown = found.shown
    return render(
        "backtest.html.j2",
        found=found,
        new=new,
        against=against[0] if against else None,
        window=window,
        flips=list(zip(shown[: len(pictures)], pictures, strict=True)),
        in_all=len(shown),
        tables=[
            ("category", found.categories, _directions(found.categories)),
            ("tenant", found.tenants, _directions(found.tenants)),
        ],
        charts=[(action, _chart(found.days, action)) for action in ("review", "block")],
    )


def _directions(groups: Sequence[Group]) -> list[object]:
    return [each for each in DIRECTIONS if any(each in group.flips for group in groups)]


def _chart(days: Sequence[Day], action: str) -> Markup:
    before = [day.before[action] for day in days]
    after = [day.after[action] for day in days]
    highest = max([each.high for each in (*before, *after)], default=1.0)
    every = -(-len(days) // _TICKS)
    ticks = [(at, f"{day.day:%d %b}") for at, day in enumerate(days) if at % every == 0]
    return chart(
        f"Share that gets {action}, by day",
        "; ".join(
            f"{day.day}: {percent(day.before[action].value)} before, "
            f"{percent(day.after[action].value)} after"
            for day in days
        ),
        Axis("day (UTC)", -0.5, len(days) - 0.5, ticks),
        shares(f"share that gets {action}", highest),
        [
            *_marks(days, before, "b", "before", -_APART),
            *_marks(days, after, "a", "after", _APART),
        ],
    )


def _marks(
    days: Sequence[Day], rates: Sequence[Interval], tone: Tone, name: str, aside: float
) -> list[Mark]:
    points = [(at + aside, *rate) for at, rate in enumerate(rates)]
    words = [
        f"{day.day}, {name}: {percent(rate.value)} ({percent(rate.low)} to {percent(rate.high)}) "
        f"of {counted(day.images, 'request')}"
        for day, rate in zip(days, rates, strict=True)
    ]
    return [Line([point[:2] for point in points], tone), Dots(points, words, tone, name)]
