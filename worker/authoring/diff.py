"""What differs between two versions of a policy, in words, with no image looked at; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from worker.policy import (
    Category,
    Policy,
    Prompt,
    Target,
    Thresholds,
    margin_digest,
)
from worker.types import ModelInfo, PreprocessSpec

POLICY: Final = "policy"
EVERY_CATEGORY: Final = "every category"

_SOME_MODEL: Final = ModelInfo(
    name="",
    weights_digest="",
    preprocess=PreprocessSpec(size=(1, 1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    precision="",
    dimension=1,
    logit_scale=1.0,
)
"""Stands for the model, which is the same wherever two digests of margins are compared."""

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """``where`` is a category's id, ``POLICY`` or ``EVERY_CATEGORY``; ``what`` is the key, with the
    text that it is about. What is not there is None."""

    where: str
    what: str
    old: str | None
    new: str | None

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        if self.old is None:
            return "added"
        return "removed" if self.new is None else "changed"


@dataclass(frozen=True, slots=True)
class Pair:
    """A category in both versions; one that looks for the same under another id was renamed."""

    old: Category | None
    new: Category | None

    @property
    def id(self) -> str:
        category = self.new or self.old
        assert category is not None, "a pair has at least one of the two"
        return category.id


def changes(old: Policy, new: Policy) -> tuple[Change, ...]:
    """In the order of the new file. What changes alike in every category is told once."""
    pairs = paired(old, new)
    found = [
        *_changes(POLICY, _of_policy(old), _of_policy(new)),
        *_order(pairs, old),
        *(change for pair in pairs for change in _of_pair(old, new, pair)),
    ]
    in_both = {pair.id for pair in pairs if pair.old and pair.new}
    where: dict[tuple[str, str | None, str | None], set[str]] = {}
    for one in found:
        where.setdefault((one.what, one.old, one.new), set()).add(one.where)
    everywhere = {what for what, places in where.items() if len(in_both) > 1 and places >= in_both}
    told = [Change(EVERY_CATEGORY, *what) for what in where if what in everywhere]
    rest = [one for one in found if (one.what, one.old, one.new) not in everywhere]
    of_policy = [one for one in rest if one.where == POLICY]
    return (*of_policy, *told, *(one for one in rest if one.where != POLICY))


def paired(old: Policy, new: Policy) -> tuple[Pair, ...]:
    """The categories of the new version in their order, then those that are gone."""
    gone = {category.id: category for category in old.categories}
    for category in new.categories:
        gone.pop(category.id, None)
    by_id = {category.id: category for category in old.categories}
    pairs = []
    for category in new.categories:
        before = by_id.get(category.id)
        if before is None:
            before = next((g for g in gone.values() if same_margins(old, g, new, category)), None)
            if before is not None:
                del gone[before.id]
        pairs.append(Pair(before, category))
    return (*pairs, *(Pair(category, None) for category in gone.values()))


def same_margins(old: Policy, before: Category, new: Policy, after: Category) -> bool:
    """Whether the two categories give every image the same margin."""
    return old.model == new.model and (
        margin_digest(old, before, _SOME_MODEL) == margin_digest(new, after, _SOME_MODEL)
    )


def in_force(policy: Policy, category: str, tenant: str | None) -> Thresholds:
    """The thresholds written for a tenant, or else for everybody."""
    own = {category.id: category.thresholds for category in policy.categories}
    overrides = {(o.tenant, o.category): o.thresholds for o in policy.overrides}
    return overrides.get((tenant or "", category), own[category])


def tenants_of(pair: Pair, old: Policy, new: Policy) -> tuple[str, ...]:
    """Those with thresholds of their own for a category, in either version."""
    found = {
        override.tenant
        for policy, category in ((old, pair.old), (new, pair.new))
        for override in policy.overrides
        if category is not None and override.category == category.id
    }
    return tuple(sorted(found))


# ---------------------------------------------------------------- what there is to say


def _of_pair(old: Policy, new: Policy, pair: Pair) -> list[Change]:
    if pair.new is None:
        return [Change(pair.id, "category", pair.id, None)]
    after = _of_category(new, pair.new)
    if pair.old is None:
        untold = {*_shared_contrast(new), *_going_without_saying(pair.new)}
        facts = {what: value for what, value in after.items() if what not in untold}
        added = Change(pair.id, "category", None, pair.id)
        return [added, *_changes(pair.id, {}, facts)]
    renamed = (
        [Change(pair.id, "id", pair.old.id, pair.new.id)] if pair.old.id != pair.new.id else []
    )
    found = [*renamed, *_changes(pair.id, _of_category(old, pair.old), after)]
    for tenant in tenants_of(pair, old, new):
        written = [in_force(old, pair.old.id, tenant), in_force(new, pair.new.id, tenant)]
        mine = [_of_thresholds(one, None, None) for one in written]
        for change in _changes(pair.id, *mine):
            told = any(
                (change.what, change.old, change.new) == (o.what, o.old, o.new) for o in found
            )
            if not told:
                what = f"{change.what} for {tenant}"
                found.append(Change(pair.id, what, change.old, change.new))
    return found


def _order(pairs: Sequence[Pair], old: Policy) -> list[Change]:
    """It decides which of two equals comes first, and is part of the digest."""
    ids = {pair.old.id: pair.new.id for pair in pairs if pair.old and pair.new}
    before = [ids[category.id] for category in old.categories if category.id in ids]
    after = [pair.id for pair in pairs if pair.old and pair.new]
    if before == after:
        return []
    return [Change(POLICY, "order of categories", ", ".join(before), ", ".join(after))]


def _changes(where: str, old: Facts, new: Facts) -> list[Change]:
    return [
        Change(where, what, old.get(what), new.get(what))
        for what in (*new, *(what for what in old if what not in new))
        if old.get(what) != new.get(what)
    ]


def _of_policy(policy: Policy) -> Facts:
    facts = {
        "version": str(policy.version),
        "id": policy.id,
        "model": policy.model,
        **{f"template “{template}”": "" for template in policy.templates},
        "on_error": policy.on_error.value,
        "views": policy.plan.views,
        "max_frames": str(policy.plan.max_frames),
    }
    if rate := policy.max_block_rate:
        facts["limits.max_block_rate"] = (
            f"{rate.share:g} of at least {rate.min_requests} requests in {rate.per_seconds:g} s"
        )
    for one in policy.lists:
        facts[f"list {one.id}"] = (
            f"{one.action.value} within {one.distance} bits of {len(one.hashes)} hashes "
            f"({one.file}, {_short(one.digest)})"
        )
    for test in policy.tests:
        tenant = f" for {test.tenant}" if test.tenant else ""
        facts[f"test {test.image}{tenant}"] = test.expect.value
    return facts


def _of_category(policy: Policy, category: Category) -> Facts:
    facts = {
        **({"description": category.description} if category.description else {}),
        **({"parent": category.parent} if category.parent else {}),
        "mode": category.mode,
        **_of_prompts("prompt", category.prompts),
        **_of_prompts("contrast", category.contrast),
        "aggregate": category.aggregate,
    }
    for exception in category.exceptions:
        texts = (
            f"“{prompt.text}”" + ("" if prompt.weight == 1 else f" × {prompt.weight:g}")
            for prompt in exception.prompts
        )
        facts[f"exception {' / '.join(texts)}"] = f"weight {exception.weight:g}"
    if head := category.head:
        facts["head"] = f"{head.file} ({_short(head.digest)}), weight {head.weight:g}"
    if calibration := category.calibration:
        curve = (
            f"{len(calibration.points)} points"
            if calibration.method == "isotonic"
            else f"scale {calibration.scale:g}, bias {calibration.bias:g}"
        )
        facts["calibration"] = (
            f"{calibration.method}, {curve}, for {_short(calibration.fitted_for)}"
        )
    facts |= _of_thresholds(category.thresholds, category.targets.review, category.targets.block)
    if category.severity:
        bands = (f"{band.name} from {band.probability:g}" for band in category.severity)
        facts["severity"] = ", ".join(bands)
    if category.at_least_frames != 1:
        facts["frames.at_least"] = str(category.at_least_frames)
    if category.block_uncalibrated:
        facts["block_uncalibrated"] = "true"
    return facts


def _of_prompts(side: str, prompts: Sequence[Prompt]) -> Facts:
    return {f"{side} “{prompt.text}”": f"weight {prompt.weight:g}" for prompt in prompts}


def _of_thresholds(thresholds: Thresholds, review: Target | None, block: Target | None) -> Facts:
    facts = {}
    for what, value, target in (
        ("review", thresholds.review, review),
        ("block", thresholds.block, block),
    ):
        words = [] if value is None else [f"{value:g}"]
        if target:
            words.append(f"(target: {target.rate} {target.value:g})")
        if words:
            facts[what] = " ".join(words)
    return facts


def _going_without_saying(category: Category) -> Iterator[str]:
    """Of a category that is new."""
    if category.aggregate == "logmeanexp":
        yield "aggregate"
    if category.id.startswith(f"{category.parent}."):
        yield "parent"


def _shared_contrast(policy: Policy) -> set[str]:
    """What is told of the policy's own contrast, and not of a category that is new."""
    facts = [set(_of_prompts("contrast", category.contrast)) for category in policy.categories]
    return set.intersection(*facts) if len(facts) > 1 else set()


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
