"""``imagewarden feedback``: how often people agree with what was decided, live or once.

One process is enough for a fleet. It remembers nothing: at each start it reads the window anew.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
import typer
from prometheus_client import Gauge
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker import telemetry
from worker.authoring.results import Interval
from worker.commands.feedback_topics import FeedbackTopics
from worker.commands.render import Format
from worker.endpoints import Health, open_endpoints
from worker.errors import Misconfigured
from worker.past.live_rates import SEVERITY, LiveRates, live_rates
from worker.past.window import parse_time
from worker.schema import now
from worker.settings import Settings

_log = structlog.get_logger(__name__)

_REFRESH_SECONDS = 1.0
_MOST_OF_A_CORE = 0.05  # that counting may take: with 200,000 judged images it is a second's work
_STUCK_AFTER_SECONDS = 120.0


async def report(settings: Settings, window: str, items: int, format: Format) -> None:
    """Prints what the topics tell now. Raises ``Misconfigured`` for a window that is none."""
    counted = _length(window)
    async with FeedbackTopics(settings, items=items) as topics:
        await topics.read(now() - counted)
    judged, unmatched = topics.join.judged(now() - counted)
    rates = live_rates(judged)
    if format is Format.JSONL:
        for line in _lines(rates):
            typer.echo(json.dumps(line))
    elif rates:
        Console().print(_table(rates))
    else:
        typer.echo(f"no feedback that answers a verdict on {settings.kafka.feedback_topic}")
    if unmatched:
        typer.echo(f"{unmatched} more answer no verdict that is still there", err=True)


async def follow(settings: Settings, window: str, items: int) -> None:
    """Serves the metrics until SIGTERM or Ctrl-C, which ends it at once. Raises ``Misconfigured``
    for a window that is none."""
    counted = _length(window)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        async with AsyncExitStack() as parts:
            await _follow(settings, counted, items, parts)
    except asyncio.CancelledError:
        _log.info("stopped")


def _length(window: str) -> timedelta:
    at = now()
    length = at - parse_time(window, at, "--window")
    if length <= timedelta():
        raise Misconfigured(
            f"--window {window} holds nothing; write a time that has passed, as 30d"
        )
    return length


async def _follow(settings: Settings, window: timedelta, items: int, parts: AsyncExitStack) -> None:
    shown = _Shown()
    http = settings.http
    endpoints = open_endpoints(http.host, http.port, live=shown.live, ready=shown.ready)
    parts.callback(endpoints.close)
    _log.info("serving", address=endpoints.address)
    topics = await parts.enter_async_context(FeedbackTopics(settings, items=items))
    await topics.read(now() - window)
    async with asyncio.TaskGroup() as group:
        group.create_task(topics.follow())
        while True:
            began = time.monotonic()
            judged, unmatched = topics.join.judged(now() - window)
            if shown.show(live_rates(judged), unmatched):
                _log.info("ready", judged=len(judged), unmatched=unmatched)
            took = time.monotonic() - began
            await asyncio.sleep(max(_REFRESH_SECONDS, took / _MOST_OF_A_CORE))


# ---------------------------------------------------------------- metrics


class _Shown:
    """The gauges, and what the probes say of them, from whichever thread asks."""

    def __init__(self) -> None:
        self._series: set[tuple[Gauge, tuple[str, ...]]] = set()
        self._at: float | None = None

    def show(self, rates: Sequence[LiveRates], unmatched: int) -> bool:
        """Whether it is the first time. Series that nothing is known of any more are taken away."""
        values = dict(_samples(rates))
        for gauge, labels in self._series - values.keys():
            gauge.remove(*labels)
        for (gauge, labels), value in values.items():
            gauge.labels(*labels).set(value)
        telemetry.FEEDBACK_UNMATCHED.set(unmatched)
        first = self._at is None
        self._series, self._at = set(values), time.monotonic()
        return first

    def live(self) -> Health:
        if self._at is None:
            return Health(True, "starting: reading the topics")
        silent = time.monotonic() - self._at
        return Health(silent < _STUCK_AFTER_SECONDS, f"counted {silent:.1f} s ago")

    def ready(self) -> Health:
        if self._at is None:
            return Health(False, "reading the topics")
        return Health(True, "the topics were read, and are being followed")


_GAUGES = {
    "precision": (
        telemetry.FEEDBACK_PRECISION,
        telemetry.FEEDBACK_PRECISION_LOW,
        telemetry.FEEDBACK_PRECISION_HIGH,
    ),
    "recall": (
        telemetry.FEEDBACK_RECALL,
        telemetry.FEEDBACK_RECALL_LOW,
        telemetry.FEEDBACK_RECALL_HIGH,
    ),
}


def _samples(
    rates: Sequence[LiveRates],
) -> Iterator[tuple[tuple[Gauge, tuple[str, ...]], float]]:
    for of in rates:
        for name, by_action in (("precision", of.precision), ("recall", of.recall)):
            for action, interval in by_action.items():
                for gauge, value in zip(_GAUGES[name], interval or (), strict=False):
                    yield (gauge, (of.policy, of.category, action)), value
        for (action, shows), count in of.judged.items():
            labels = (of.policy, of.category, action, str(shows).lower())
            yield (telemetry.FEEDBACK_JUDGED, labels), count


# ---------------------------------------------------------------- printing


def _lines(rates: Sequence[LiveRates]) -> Iterator[dict[str, object]]:
    for of in rates:
        judged = {
            action: {"shows": of.judged[action, True], "others": of.judged[action, False]}
            for action in SEVERITY
        }
        for action, precision in of.precision.items():
            recall = of.recall[action]
            yield {
                "policy": of.policy,
                "category": of.category,
                "action": action,
                "precision": precision and precision._asdict(),
                "recall": recall and recall._asdict(),
                "judged": judged,
            }


def _table(rates: Sequence[LiveRates]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    table.add_column("from")
    for column in ("precision", "recall", "blocked", "reviewed", "allowed"):
        table.add_column(column, justify="right")
    for of in rates:
        counts = [
            f"{of.judged[action, True]} + {of.judged[action, False]}"
            for action in ("block", "review", "allow")
        ]
        for action, precision in of.precision.items():
            first = action == "review"
            table.add_row(
                f"{of.policy} {of.category}" if first else "",
                action,
                _percent(precision),
                _percent(of.recall[action]),
                *(counts if first else ("", "", "")),
            )
    table.caption = (
        "Images that people looked at, those that show the category + others, by what it had said "
        "of them. No recall where nobody looked at images that were allowed."
    )
    table.caption_justify = "left"
    return table


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "unknown"
    return f"{interval.value:.1%} ({interval.low:.1%}–{interval.high:.1%})"
