"""The images that a category got wrong with most confidence, and what spoke for and against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.authoring.examples import Example
from worker.authoring.results import Calibrated, Fit
from worker.score import CategoryScore, decide


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """An image with the probability that the other folds gave it, and what would have been done.
    ``score`` tells of its prompts; None where the category is off."""

    example: Example
    probability: float
    action: str
    score: CategoryScore | None


@dataclass(frozen=True, slots=True, eq=False)
class Mistakes:
    """The worst first; ``false_alarms`` and ``misses`` may be fewer than there are in all."""

    threshold: float
    written: bool  #: whether the threshold stands in the policy; else it is one half
    false_alarms: tuple[Mistake, ...]
    misses: tuple[Mistake, ...]
    false_alarms_in_all: int
    misses_in_all: int


def mistakes(calibrated: Calibrated, fit: Fit, most: int) -> Mistakes:
    """At the category's lowest threshold; at most ``most`` of either kind."""
    threshold = lowest_threshold(fit)
    at = 0.5 if threshold is None else threshold
    flagged = fit.held_out >= at
    alarms = np.flatnonzero(flagged & ~fit.labels)
    misses = np.flatnonzero(~flagged & fit.labels)
    alarms = alarms[np.argsort(-fit.held_out[alarms], kind="stable")]
    misses = misses[np.argsort(fit.held_out[misses], kind="stable")]
    return Mistakes(
        at,
        threshold is not None,
        tuple(_mistake(calibrated, fit, place) for place in alarms[:most].tolist()),
        tuple(_mistake(calibrated, fit, place) for place in misses[:most].tolist()),
        len(alarms),
        len(misses),
    )


def lowest_threshold(fit: Fit) -> float | None:
    """From which on anything happens at all."""
    return min((one.value for one in fit.thresholds if one.value is not None), default=None)


def _mistake(calibrated: Calibrated, fit: Fit, place: int) -> Mistake:
    example = calibrated.examples[fit.places[place]]
    probability = float(fit.held_out[place])
    reached = {
        one.action for one in fit.thresholds if one.value is not None and one.value <= probability
    }
    embedding = example.embedding
    decided = decide(calibrated.compiled, embedding.rows, None, embedding.facts.rows)
    scores = {one.id: one for one in (*decided.categories, *decided.shadow)}
    return Mistake(
        example,
        probability,
        next((action for action in ("block", "review") if action in reached), "allow"),
        scores.get(fit.category),
    )
