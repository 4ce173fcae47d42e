"""What a policy would have changed: its decisions on the past, held against others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.authoring.rates import wilson
from worker.authoring.results import Interval
from worker.compiled import CompiledPolicy, Float64s
from worker.decide_many import ACTIONS, NOBODY, Codes
from worker.past.embedding_store import Indices
from worker.past.join import Past
from worker.past.replay import Decisions, Replay, asked_probabilities, replay, said
from worker.types import ModelInfo


class Direction(NamedTuple):
    """From one action to another."""

    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.before} → {self.after}"


NO_TENANT: Final = "(no tenant)"

#: In the order of tables: what gets stricter, then what gets milder, the farthest first.
DIRECTIONS: Final = tuple(
    Direction(ACTIONS[before].value, ACTIONS[after].value)
    for before, after in ((0, 2), (0, 1), (1, 2), (2, 0), (1, 0), (2, 1))
)


@dataclass(frozen=True, slots=True)
class Group:
    """Some of what was decided again (a tenant's, a category's) and how it flipped. ``images`` are
    all in the group; of a category, those whose decision it asked for, before or after."""

    name: str
    images: int
    flips: Mapping[Direction, int]

    @property
    def flipped(self) -> int:
        return sum(self.flips.values())


@dataclass(frozen=True, slots=True)
class Day:
    """Of the requests first judged on that day (UTC), the shares that got review, and block."""

    day: date
    images: int
    before: Mapping[str, Interval]
    after: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Flip:
    """One decision that changes. ``category`` (or list) is who asks for the severer of the two;
    the probabilities are its own, NaN where it has none."""

    item_id: str
    request_id: str
    tenant: str | None
    first_at: datetime
    sha256: str | None
    direction: Direction
    category: str
    probability_before: float
    probability_after: float


@dataclass(frozen=True, slots=True)
class Backtest:
    """``flipped`` has what changes most first. ``left_out`` counts verdicts that could not be
    decided again, by the reason; ``notes`` are sentences."""

    requests: int
    replayed: int
    flips: Mapping[Direction, int]
    categories: Sequence[Group]
    tenants: Sequence[Group]
    days: Sequence[Day]
    flipped: Sequence[Flip]
    left_out: Mapping[str, int]
    notes: Sequence[str] = field(default=())

    @property
    def share(self) -> Interval:
        """Of what was decided again, the share that flips."""
        return wilson(sum(self.flips.values()), self.replayed)

    @property
    def shown(self) -> list[Flip]:
        """For people to look at: of the flips of one image for one tenant, the first."""
        first: dict[tuple[str | None, ...], Flip] = {}
        for flip in self.flipped:
            first.setdefault((flip.sha256 or flip.request_id, flip.tenant), flip)
        return list(first.values())


def backtest(
    past: Past,
    new: CompiledPolicy,
    model: ModelInfo,
    *,
    against: CompiledPolicy | None = None,
) -> Backtest:
    """``new`` against what the verdicts said or, with ``against``, another policy on the same
    embeddings."""
    now = replay(past, new, model)
    left_out = Counter(now.left_out)
    if against is None:
        then, rows, before, after = None, now.rows, said(past, now.rows), now.decisions
    else:
        then = replay(past, against, model)
        rows, of_then, of_now = np.intersect1d(then.rows, now.rows, return_indices=True)
        before, after = then.decisions[of_then], now.decisions[of_now]
        left_out |= Counter(then.left_out)
    verdicts = past.verdicts.take(rows)
    flipped = np.flatnonzero(before.severity != after.severity)
    directions = _directions(before.severity[flipped], after.severity[flipped])
    askers = _askers(before, after)
    asked = [askers[row] for row in flipped.tolist()]
    tenants = verdicts["tenant"].cast(pa.string()).fill_null(NO_TENANT).to_pylist()
    if against is None or then is None:
        was = _said_probabilities(past, rows[flipped], asked)
    else:
        was = _replayed_probabilities(past, then, against, rows[flipped], asked)
    is_ = _replayed_probabilities(past, now, new, rows[flipped], asked)
    # Two steps come before one, then the probability that moves farthest; where only a threshold
    # moved, the surest
    steps = np.abs(before.severity[flipped] - after.severity[flipped])
    moved = np.round(np.abs(np.nan_to_num(is_ - was)), 3)
    farthest = np.lexsort((-np.nan_to_num(is_), -moved, -steps))
    return Backtest(
        requests=len(past),
        replayed=len(rows),
        flips=_ordered(directions),
        categories=_groups(askers, asked, directions),
        tenants=_groups(tenants, [tenants[row] for row in flipped.tolist()], directions),
        days=_days(verdicts, before, after),
        flipped=[
            Flip(
                **told,
                direction=directions[flip],
                category=asked[flip] or "",
                probability_before=float(was[flip]),
                probability_after=float(is_[flip]),
            )
            for flip, told in zip(
                farthest.tolist(), _told(verdicts, flipped[farthest]), strict=True
            )
        ],
        left_out=dict(left_out.most_common()),
        notes=_notes(past, new, against),
    )


def _directions(before: Codes, after: Codes) -> list[Direction]:
    names = [action.value for action in ACTIONS]
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    return [Direction(names[was], names[is_]) for was, is_ in pairs]


def _askers(before: Decisions, after: Decisions) -> list[str | None]:
    """Of each image who asks for the severer of the two decisions; None where both allow."""
    stricter = after.severity >= before.severity
    was, is_ = ([*each.names, None] for each in (before, after))  # the last one is nobody's
    places = np.where(stricter, after.decided_by, before.decided_by).tolist()
    return [
        (is_ if later else was)[place]
        for later, place in zip(stricter.tolist(), places, strict=True)
    ]


def _groups(
    members: Iterable[str | None], flipped: Sequence[str | None], directions: Sequence[Direction]
) -> list[Group]:
    """By name, those with most flips first; ``flipped`` has the group of each flip."""
    sizes = Counter(member for member in members if member is not None)
    by_group: dict[str, list[Direction]] = {name: [] for name in sizes}
    for name, direction in zip(flipped, directions, strict=True):
        if name is not None:
            by_group[name].append(direction)
    groups = [Group(name, sizes[name], _ordered(flips)) for name, flips in by_group.items()]
    return sorted(groups, key=lambda group: (-group.flipped, group.name))


def _ordered(directions: Iterable[Direction]) -> dict[Direction, int]:
    counts = Counter(directions)
    return {direction: counts[direction] for direction in DIRECTIONS if counts[direction]}


def _told(verdicts: pa.Table, rows: Indices) -> list[dict[str, Any]]:
    """What a ``Flip`` says of its request."""
    names = ("item_id", "request_id", "tenant", "first_at", "sha256")
    told: list[dict[str, Any]] = verdicts.select(names).take(rows).to_pylist()
    return told


# ---------------------------------------------------------------- how far


def _said_probabilities(past: Past, rows: Indices, categories: Sequence[str | None]) -> Float64s:
    """Of each row that category's probability as the verdict said it; NaN where it said none."""
    said = past.verdicts.select(["categories", "probabilities"]).take(rows)
    found = np.full(len(rows), np.nan)
    columns = zip(said["categories"].to_pylist(), said["probabilities"].to_pylist(), strict=True)
    for row, (category, (names, values)) in enumerate(zip(categories, columns, strict=True)):
        if category in names:
            found[row] = values[names.index(category)]
    return found


def _replayed_probabilities(
    past: Past,
    replayed: Replay,
    compiled: CompiledPolicy,
    rows: Indices,
    categories: Sequence[str | None],
) -> Float64s:
    place_of = {category.id: place for place, category in enumerate(compiled.categories)}
    asked = np.array([place_of.get(name or "", NOBODY) for name in categories], dtype=np.intp)
    places = replayed.places[np.searchsorted(replayed.rows, rows)]
    return asked_probabilities(past.embeddings, compiled, places, asked)


# ---------------------------------------------------------------- by day


def _days(verdicts: pa.Table, before: Decisions, after: Decisions) -> list[Day]:
    days = np.asarray(verdicts["first_at"]).astype("datetime64[D]")
    found, day_of = np.unique(days, return_inverse=True)
    images = np.bincount(day_of, minlength=len(found))

    def shares(severity: Codes) -> list[dict[str, Interval]]:
        counts = [np.bincount(day_of, severity == each, len(found)) for each in range(len(ACTIONS))]
        return [
            {ACTIONS[each].value: wilson(counts[each][day], int(images[day])) for each in (1, 2)}
            for day in range(len(found))
        ]

    was, is_ = shares(before.severity), shares(after.severity)
    columns = zip(found.tolist(), images.tolist(), was, is_, strict=True)
    return [Day(*of_day) for of_day in columns]


# ---------------------------------------------------------------- what else to know


def _notes(past: Past, new: CompiledPolicy, against: CompiledPolicy | None) -> list[str]:
    notes = past.tally.sentences()
    if new.uncalibrated:
        notes.append(
            f"Not calibrated, and so never blocking unless the policy says block_uncalibrated: "
            f"{', '.join(new.uncalibrated)}."
        )
    braked = pc.sum(past.verdicts["braked"]).as_py() or 0
    if braked:
        notes.append(
            f"{braked:,} blocks were turned into reviews by the policy's brake; they count as "
            "blocks here."
        )
    if (against or new).policy.max_block_rate or new.policy.max_block_rate:
        notes.append(
            "The brake (limits.max_block_rate) is not replayed: blocks are counted as they were "
            "before it."
        )
    on_error = new.policy.on_error.value
    failed = past.verdicts.filter(past.verdicts["error"].is_valid())
    changed = pc.sum(pc.not_equal(failed["action"].cast(pa.string()), on_error)).as_py() or 0
    if changed:
        notes.append(
            f"Of {len(failed):,} images that could not be examined, {changed:,} would get "
            f"{on_error!r} by on_error, which they did not get."
        )
    return notes
