"""``imagewarden policy backtest``: what a policy would have changed in the past."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.assembly import load_model
from worker.authoring.html import check_place, write_page
from worker.authoring.quantities import DASH, count, decimal, percent
from worker.authoring.results import Interval
from worker.commands.flip_thumbnails import read_places, thumbnails_of
from worker.commands.past import (
    DEFAULT_SINCE,
    comparable,
    compiled,
    of_policy,
    past_of_files,
    past_of_topics,
    reader_of,
    window_of,
)
from worker.commands.render import Exit, Format, progress_bar
from worker.errors import Misconfigured
from worker.past.backtest import DIRECTIONS, Backtest, Flip, backtest
from worker.past.backtest import Group as FlipGroup
from worker.past.backtest_page import backtest_page
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past
from worker.policy import Policy
from worker.policy_yaml import load_policy
from worker.seams import Encoder
from worker.settings import Settings

SHOWN: Final = 60  #: flips in a report, at some 4 KB for a picture

_PRINTED: Final = 15


@dataclass(frozen=True, slots=True)
class BacktestOptions:
    """What the command's options say; ``since`` None is all of a file, and a week of the topics."""

    new: Path
    against: Path | None = None
    of: str | None = None
    since: str | None = None
    until: str | None = None
    inputs: Sequence[Path] = ()
    report: Path | None = None
    urls: Path | None = None
    max_flips: float | None = None


async def run_backtest(
    settings: Settings,
    options: BacktestOptions,
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Prints what would change, and writes the report; 1 where it is more than may."""
    policies = [load_policy(path) for path in (options.new, options.against) if path]
    places = read_places(options.urls) if options.urls else {}
    if options.report:
        check_place(options.report)
    with EmbeddingStore() as store:
        past = await _past(settings, options, policies, store)
        with progress_bar() as bar:
            bar.add_task("loading the model", total=None)
            encoder = await asyncio.to_thread(load, settings)
        new, *against = compiled(encoder, policies)
        found = backtest(past, new, encoder.info, against=against[0] if against else None)
        if not found.replayed:
            raise Misconfigured(_nothing_replayed(found))
    if options.report:
        pictures = await thumbnails_of(settings, places, found.shown[:SHOWN])
        _write_report(options, policies, past, found, pictures)
    _print(found, format)
    if options.max_flips is not None and found.share.value > options.max_flips:
        typer.echo(
            f"imagewarden: {percent(found.share.value)} of the decisions flip, more than the "
            f"{percent(options.max_flips)} that may",
            err=True,
        )
        return Exit.NOT_ALL_ALLOWED
    return Exit.ALL_ALLOWED


async def _past(
    settings: Settings, options: BacktestOptions, policies: Sequence[Policy], store: EmbeddingStore
) -> Past:
    """What was decided under the policy, or the one that ``of`` names."""
    if options.inputs:
        if options.until and not options.since:
            raise Misconfigured("--until with --input needs --since too: from when on?")
        window = window_of(options.since, options.until) if options.since else None
        past = await asyncio.to_thread(past_of_files, options.inputs, store, window)
    else:
        window = window_of(options.since or DEFAULT_SINCE, options.until)
        async with reader_of(settings, settings.kafka.verdicts_topic) as verdicts:
            past = await past_of_topics(settings, verdicts, store, window)
    return comparable(of_policy(past, options.of or policies[0].id), policies)


def _nothing_replayed(found: Backtest) -> str:
    reasons = "; ".join(f"{number:,} {why}" for why, number in found.left_out.items())
    return f"none of the {found.requests:,} verdicts can be decided again: {reasons}"


# ---------------------------------------------------------------- what is printed


def summary(found: Backtest) -> str:
    """One sentence."""
    share = found.share
    flips = sum(found.flips.values())
    return f"{count(flips)} of {count(found.replayed)} decisions flip: {_with_interval(share)}"


def _print(found: Backtest, format: Format) -> None:
    if format is Format.JSONL:
        for flip in found.flipped:
            sys.stdout.write(json.dumps(_line(flip)) + "\n")
    else:
        # In a pipe there is no width to fit into
        Console(width=None if sys.stdout.isatty() else 160).print(*_tables(found), sep="\n")
    typer.echo(summary(found), err=True)
    for why, number in found.left_out.items():
        typer.echo(f"not decided again: {number:,} {why}", err=True)
    for note in found.notes:
        typer.echo(note, err=True)


def _line(flip: Flip) -> dict[str, Any]:
    numbers = {"before": _finite(flip.probability_before), "after": _finite(flip.probability_after)}
    return {
        "item_id": flip.item_id,
        "request_id": flip.request_id,
        "tenant": flip.tenant,
        "first_at": flip.first_at.isoformat(),
        "sha256": flip.sha256,
        "before": flip.direction.before,
        "after": flip.direction.after,
        "decided_by": flip.category,
        "probability": numbers,
    }


def _finite(probability: float) -> float | None:
    return probability if math.isfinite(probability) else None


def _tables(found: Backtest) -> Iterator[Table]:
    if found.flips:
        yield _flip_table("category", found.categories)
        yield _flip_table("tenant", found.tenants)
    yield _day_table(found)
    if found.flipped:
        yield _worst_table(found.shown[:_PRINTED])


def _table(*columns: str, title: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def _flip_table(what: str, groups: Sequence[FlipGroup]) -> Table:
    directions = [each for each in DIRECTIONS if any(each in group.flips for group in groups)]
    numbers = ("requests", "flips", *map(str, directions))
    table = _table(what, *numbers, title=f"Flips by {what}", numbers=numbers)
    for group in groups:
        counts = [count(group.flips[each]) if each in group.flips else "" for each in directions]
        table.add_row(Text(group.name), count(group.images), count(group.flipped), *counts)
    return table


def _day_table(found: Backtest) -> Table:
    columns = ("review before", "after", "block before", "after ")
    table = _table("day", "requests", *columns, title="Shares by day, with 95 % intervals")
    for day in found.days:
        shares = (
            _with_interval(side[action])
            for action in ("review", "block")
            for side in (day.before, day.after)
        )
        table.add_row(day.day.isoformat(), count(day.images), *shares)
    return table


def _worst_table(flips: Sequence[Flip]) -> Table:
    columns = ("item", "tenant", "flip", "asked by", "before", "after")
    table = _table(*columns, title="What changes most", numbers=columns[-2:])
    for flip in flips:
        numbers = (decimal(each, 2) for each in (flip.probability_before, flip.probability_after))
        table.add_row(
            Text(flip.item_id),
            Text(flip.tenant or ""),
            str(flip.direction),
            Text(flip.category),
            *numbers,
        )
    return table


def _with_interval(share: Interval) -> str:
    return (
        f"{percent(share.value)} "
        f"({percent(share.low, unit=False)}{DASH}{percent(share.high, unit=False)})"
    )


# ---------------------------------------------------------------- the report


def _write_report(
    options: BacktestOptions,
    policies: Sequence[Policy],
    past: Past,
    found: Backtest,
    pictures: Sequence[bytes | str | None],
) -> None:
    assert options.report
    write_page(options.report, backtest_page(found, policies, past.window, pictures))
    typer.echo(f"report: {options.report}", err=True)
