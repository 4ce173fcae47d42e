"""Thresholds: what reaches them on images that were held out, and values solved from targets.

A target is solved on the safe side: with 95 % confidence the rate is at most (or, of recall and
precision, at least) what was asked for. Solving looks at the scores themselves and is no less sure
for it: the share of all negatives above the k-th highest of n has the very distribution that
Clopper–Pearson's bound is a quantile of (Wilks 1941, on tolerance limits).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Floats, Labels
from worker.authoring.quantities import count, counted, percent
from worker.authoring.rates import (
    ONE_SIDED,
    effective_number,
    fewest_to_show,
    lower,
    precision_at,
    rate,
    upper,
)
from worker.authoring.results import Interval, ThresholdReport
from worker.policy import Category, Target

_NAMES: Final = {"fpr": "an FPR", "recall": "a recall", "precision": "a precision"}


class Unsolvable(Exception):
    """The data cannot support a target; the message says why, as a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Held-out probabilities of images, at ``prevalence`` if one is stated. ``groups`` are their
    near-duplicates. All vectors of one length."""

    probabilities: Floats
    labels: Labels
    weights: Floats
    groups: NDArray[np.intp]
    prevalence: float | None

    def number(self, labels: Labels) -> float:
        """How many images the chosen ones are worth."""
        return effective_number(self.weights[labels], self.groups[labels])

    def shares(self, thresholds: Floats, labels: Labels) -> Floats:
        """Of the chosen images, by threshold: those that reach it."""
        order = np.argsort(self.probabilities[labels])
        below = np.concatenate([[0.0], np.cumsum(self.weights[labels][order])])
        places = np.searchsorted(self.probabilities[labels][order], thresholds)
        found: Floats = 1.0 - below[places] / below[-1]
        return np.clip(found, 0.0, 1.0)


def reports(category: Category, scored: Scored) -> tuple[ThresholdReport, ...]:
    """Of the thresholds that the category has or wants, review first."""
    found: list[ThresholdReport] = []
    actions: tuple[Literal["review", "block"], ...] = ("review", "block")
    for action in actions:
        value: float | None = getattr(category.thresholds, action)
        target: Target | None = getattr(category.targets, action)
        refused = None
        if target is not None:
            try:
                value = solved(target, scored)
            except Unsolvable as error:
                refused = str(error)
        if value is not None or target is not None:
            found.append(ThresholdReport(action, value, target, refused=refused))
    return tuple(_with_rates(report, scored) for report in _in_order(found))


def solved(target: Target, scored: Scored) -> float:
    """The lowest threshold at which an FPR or precision is surely kept, the highest at which a
    recall is. Raises ``Unsolvable``."""
    candidates = np.unique(scored.probabilities)
    fpr = scored.shares(candidates, ~scored.labels)
    recall = scored.shares(candidates, scored.labels)
    negatives, positives = scored.number(~scored.labels), scored.number(scored.labels)
    if target.rate == "fpr":
        _check_number(target, negatives, scored, fewest_to_show(target.value))
        kept = upper(fpr, negatives) <= target.value
    elif target.rate == "recall":
        _check_number(target, positives, scored, fewest_to_show(1 - target.value))
        kept = lower(recall, positives) >= target.value
    elif scored.prevalence is None:
        raise Unsolvable(
            "a precision means nothing without the share of live traffic that is positive; state "
            "it with --prevalence"
        )
    else:
        # two bounds that are each wrong half as often hold together as often as one
        shown = lower(recall, positives, ONE_SIDED / 2)
        # what could be shown if no negative reached any threshold
        alarms_kept = scored.prevalence * shown.max() * (1 - target.value)
        alarms_kept /= (1 - scored.prevalence) * target.value
        fewest = fewest_to_show(min(float(alarms_kept), 0.5), ONE_SIDED / 2)
        _check_number(target, negatives, scored, fewest)
        alarms = upper(fpr, negatives, ONE_SIDED / 2)
        kept = precision_at(shown, alarms, scored.prevalence) >= target.value
    if not kept.any():
        raise Unsolvable(
            f"no threshold keeps {_NAMES[target.rate]} of {percent(target.value)} with 95 % "
            f"confidence: to its prompts, images that show it and others are too much alike; "
            f"reword them, or ask for less"
        )
    place = int(np.flatnonzero(kept)[-1 if target.rate == "recall" else 0])
    below = float(candidates[place - 1]) if place else 0.0
    return _between(below, float(candidates[place]))


def _check_number(target: Target, number: float, scored: Scored, fewest: int) -> None:
    if number >= fewest - 1e-6:
        return
    of_positives = target.rate == "recall"
    images = int((scored.labels == of_positives).sum())
    kind = "positive" if of_positives else "negative"
    worth = "" if number > images - 1 else f", worth {number:.0f} unlike ones of equal weight,"
    where = ""
    if target.rate == "precision" and scored.prevalence is not None:
        where = f" where {percent(scored.prevalence)} is positive"
    raise Unsolvable(
        f"{counted(images, kind)}{worth} cannot show {_NAMES[target.rate]} of "
        f"{percent(target.value)}{where}: at least {count(fewest)} are needed"
    )


def _in_order(found: list[ThresholdReport]) -> list[ThresholdReport]:
    """``review`` no higher than ``block``. One of the two may give way where its target allows it:
    a higher threshold has a lower FPR, a lower one a higher recall."""
    if len(found) < 2:
        return found
    review, block = found
    if review.value is None or block.value is None or review.value <= block.value:
        return found
    if review.target and review.target.rate == "recall" and not review.refused:
        return [replace(review, value=block.value), block]
    if block.target and block.target.rate == "fpr" and not block.refused:
        return [review, replace(block, value=review.value)]
    why = (
        f"`review` would be {review.value:g}, above `block` at {block.value:g}, and nothing would "
        f"be reviewed; ask for a stricter `block` or a laxer `review`"
    )
    return [
        replace(report, refused=report.refused or why) if report.target else report
        for report in found
    ]


def _with_rates(report: ThresholdReport, scored: Scored) -> ThresholdReport:
    if report.value is None:
        return report
    at = np.array([report.value])
    of_negatives = float(scored.shares(at, ~scored.labels)[0])
    of_positives = float(scored.shares(at, scored.labels)[0])
    fpr = rate(of_negatives, scored.number(~scored.labels))
    recall = rate(of_positives, scored.number(scored.labels))
    precision = None
    if scored.prevalence is not None and (fpr.value or recall.value):
        value, low, high = precision_at(
            np.array([recall.value, recall.low, recall.high]),
            np.array([fpr.value, fpr.high, fpr.low]),
            scored.prevalence,
        ).tolist()
        precision = Interval(value, low, high)
    return replace(report, fpr=fpr, recall=recall, precision=precision)


def _between(low: float, high: float) -> float:
    """The number of fewest digits above ``low`` and at most ``high``."""
    for digits in range(2, 17):
        shorter: float = math.floor(high * 10**digits) / 10**digits
        if low < shorter <= high:
            return shorter
    return high
