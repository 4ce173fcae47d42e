"""What an edit of a policy is certain to do, as sentences; pure.

Said is only what follows from the two files. What an edit does to decisions beyond that depends on
the images, and a backtest tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from worker.authoring.diff import Pair, in_force, paired, same_margins, tenants_of
from worker.policy import Category, Policy, Thresholds

Span = tuple[float, float]  #: probabilities from one to below another


def consequences(old: Policy, new: Policy) -> tuple[str, ...]:
    """The weightiest first. Assumes of a calibration that it was fitted for the old wording."""
    if old.digest == new.digest:
        return tuple(_of_names(old, new, decides_alike=True))
    pairs = paired(old, new)
    return (
        *_of_calibrations(old, new, pairs),
        *_of_modes(pairs),
        *_of_thresholds(old, new, pairs),
        *_of_the_whole(old, new),
        *_of_names(old, new, decides_alike=False),
    )


def _of_calibrations(old: Policy, new: Policy, pairs: Sequence[Pair]) -> Iterator[str]:
    stale: list[str] = []
    stale_and_blocking: list[str] = []
    refitted: list[str] = []
    removed: list[str] = []
    for pair in pairs:
        if not (pair.old and pair.new and pair.old.calibration and pair.new.mode != "off"):
            continue
        if pair.new.calibration is None:
            removed.append(pair.id)
        elif pair.new.calibration != pair.old.calibration:
            refitted.append(pair.id)
        elif not same_margins(old, pair.old, new, pair.new):
            blocking = _may_block(new, pair.new) and not pair.new.block_uncalibrated
            (stale_and_blocking if blocking else stale).append(pair.id)
    if stale_and_blocking:
        yield (
            f"{_these(stale_and_blocking)} uncalibrated now and can no longer block, only ask for "
            f"review: what the margin depends on changed, and the calibration is the old one; run "
            f"`imagewarden policy calibrate`"
        )
    if stale:
        yield (
            f"{_these(stale)} uncalibrated now: what the margin depends on changed, and the "
            f"calibration is the old one; run `imagewarden policy calibrate`"
        )
    if removed:
        yield f"{_these(removed)} uncalibrated now: the calibration was removed"
    if refitted:
        yield f"{_named(refitted)}: calibrated anew, so equal images may get other probabilities"


def _of_modes(pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        before = pair.old.mode if pair.old else "off"
        after = pair.new.mode if pair.new else "off"
        if before == after:
            continue
        if after == "enforce":
            yield f"{pair.id} decides now"
        elif after == "shadow":
            stops = " and decides no longer" if before == "enforce" else ""
            yield f"{pair.id} is on trial now{stops}: verdicts say under `shadow` what it would do"
        elif before == "enforce":
            yield f"{pair.id} decides no longer, and verdicts do not mention it"
        else:
            yield f"{pair.id} is on trial no longer, and verdicts do not mention it"


def _of_thresholds(old: Policy, new: Policy, pairs: Sequence[Pair]) -> Iterator[str]:
    """Where nothing but a threshold moved, which way decisions can go."""
    for pair in pairs:
        if not (pair.old and pair.new and pair.new.mode != "off"):
            continue
        if pair.old.calibration != pair.new.calibration:
            continue
        if not same_margins(old, pair.old, new, pair.new):
            continue
        for tenant in (None, *tenants_of(pair, old, new)):
            before = _that_act(pair.old, in_force(old, pair.old.id, tenant))
            after = _that_act(pair.new, in_force(new, pair.new.id, tenant))
            whose = f"{pair.id} for {tenant}" if tenant else pair.id
            yield from _moved(whose, "reviewed", _reviewed(before), _reviewed(after))
            yield from _moved(whose, "blocked", _blocked(before), _blocked(after))


def _that_act(category: Category, written: Thresholds) -> Thresholds:
    """Without a calibration, `block` only asks for review."""
    if category.calibration or category.block_uncalibrated:
        return written
    return Thresholds(written.block if written.review is None else written.review, None)


def _reviewed(thresholds: Thresholds) -> Span | None:
    """Block beats review."""
    review, block = thresholds.review, _blocked(thresholds)
    end = block[0] if block else math.inf
    return None if review is None or review >= end else (review, end)


def _blocked(thresholds: Thresholds) -> Span | None:
    return None if thresholds.block is None else (thresholds.block, math.inf)


def _moved(whose: str, done: str, before: Span | None, after: Span | None) -> Iterator[str]:
    """Of the lower ends; where the upper one moved, the other action tells."""
    if before is None:
        if after is not None:
            yield f"{whose}: probabilities from {after[0]:g} are {done} now; none were before"
    elif after is None:
        yield f"{whose}: none is {done} any more"
    elif after[0] < before[0]:
        end = min(before[0], after[1])
        yield f"{whose}: probabilities from {after[0]:g} to below {end:g} are {done} now too"
    elif before[0] < after[0]:
        end = min(after[0], before[1])
        yield f"{whose}: probabilities from {before[0]:g} to below {end:g} are {done} no longer"


def _of_the_whole(old: Policy, new: Policy) -> Iterator[str]:
    if old.model != new.model:
        yield f"only workers that load the model {new.model} take this policy"
    if old.plan != new.plan:
        yield "every image is embedded anew: other rows of it are looked at, and none is cached"
    if old.on_error != new.on_error:
        yield f"an image that cannot be examined comes to {new.on_error.value} now"


def _of_names(old: Policy, new: Policy, *, decides_alike: bool) -> Iterator[str]:
    if decides_alike and old != new:
        yield "no decision can change: what differs is only what people read"
    if old.id != new.id:
        yield f"requests that ask for the policy {old.id!r} do not find it, and are undetermined"
    if not decides_alike and new.version <= old.version:
        stays = "is still" if new.version == old.version else "fell to"
        yield (
            f"the version {stays} {new.version}: raise it above {old.version}, so that people can "
            f"tell the verdicts of the two apart"
        )
    for pair in paired(old, new):
        if pair.old and pair.new and pair.old.id != pair.new.id:
            yield f"verdicts say {pair.new.id} where they said {pair.old.id}"


def _may_block(policy: Policy, category: Category) -> bool:
    tenants = (None, *(override.tenant for override in policy.overrides))
    return any(in_force(policy, category.id, tenant).block is not None for tenant in tenants)


def _these(ids: Sequence[str]) -> str:
    return f"{_named(ids)} {'counts' if len(ids) == 1 else 'count'} as"


def _named(ids: Iterable[str]) -> str:
    *first, last = ids
    return f"{', '.join(first)} and {last}" if first else last
