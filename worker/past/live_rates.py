"""Precision and recall from what people said of verdicts, with intervals. Pure.

Precision at an action is, of the images that got the action or a severer one, the share that shows
the category; recall is, of those that show it, the share that got the action or a severer one. Both
are a / (a + b) of two sums of weights, where an image weighs as many as it stands for (one over the
share that was sampled; Horvitz and Thompson 1952). Recall is only as honest as the sample of images
that were allowed: where people looked at none of them, it is not estimated.

The intervals are Jeffreys' (Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286),
extended to weights. Let the counts behind a and b be Poisson, with Jeffreys' prior: their rates are
then Gamma(count + 1/2), and a / (a + b) is Beta(count of a + 1/2, count of b + 1/2), which is his
interval. A sum of weighted counts has nearly the gamma distribution of the same mean and variance
(Fay and Feuer 1997), with the half count at the weight of the images among which one more would
have been found; and the share that one gamma has of two is a beta variable but for their scales. So
a sample of one in a hundred in which nothing was missed still allows for a few hundred missed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.authoring.results import Interval
from worker.past.feedback import Judged
from worker.schema import Action

Floats = NDArray[np.float64]

SEVERITY: Final[dict[Action, int]] = {"allow": 0, "review": 1, "block": 2}
_AT: Final[tuple[Action, ...]] = ("review", "block")
_TAILS: Final = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class LiveRates:
    """How a category of a policy did. ``judged`` counts images by what was said of them and whether
    they show it. A rate is None where no image that people looked at could tell: recall, where they
    looked at none that was allowed."""

    policy: str
    category: str
    judged: Counter[tuple[Action, bool]]
    precision: dict[Action, Interval | None]
    recall: dict[Action, Interval | None]


def live_rates(judged: Iterable[Judged]) -> list[LiveRates]:
    """Those of each policy and category, in the order of their names."""
    by_category: defaultdict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        by_category[one.policy, one.category].append(one)
    return [_rates(*names, by_category[names]) for names in sorted(by_category)]


def _rates(policy: str, category: str, judged: list[Judged]) -> LiveRates:
    severity = np.array([SEVERITY[one.action] for one in judged])
    shows = np.array([one.shows for one in judged])
    weights = np.array([one.weight for one in judged])
    rates = LiveRates(policy, category, Counter((one.action, one.shows) for one in judged), {}, {})
    for action in _AT:
        reached = severity >= SEVERITY[action]
        at, below = _typical(weights[reached]), _typical(weights[~reached])
        rates.precision[action] = (
            share(weights[reached & shows], weights[reached & ~shows], at, at)
            if reached.any()
            else None
        )
        rates.recall[action] = (
            share(weights[reached & shows], weights[~reached & shows], at, below)
            if shows.any() and not severity.all()
            else None
        )
    return rates


def share(a: Floats, b: Floats, typical_a: float, typical_b: float) -> Interval:
    """Σa / (Σa + Σb), of two vectors of weights that are not both empty.

    ``typical_a`` and ``typical_b`` are the weights that an image more of a and of b would have.
    """
    from scipy.special import betaincinv

    value = float(a.sum() / (a.sum() + b.sum()))
    (shape_a, scale_a), (shape_b, scale_b) = _gamma(a, typical_a), _gamma(b, typical_b)
    low, high = (
        float(scale_a * x / (scale_a * x + scale_b * (1 - x)))
        for x in betaincinv(shape_a, shape_b, _TAILS)
    )
    # Where one more image would weigh far more than all that were found, the interval moves away
    # from the estimate, which is extended to; at either end the estimate itself is the limit
    return Interval(value, min(low, value) if a.size else 0.0, max(high, value) if b.size else 1.0)


def _gamma(weights: Floats, typical: float) -> tuple[float, float]:
    """Shape and scale."""
    mean = weights.sum() + typical / 2
    variance = (weights**2).sum() + typical**2 / 2
    return mean**2 / variance, variance / mean


def _typical(weights: Floats) -> float:
    """The weight with which an image of the group is sampled, on average over those that the group
    stands for; 1 for an empty group."""
    return float((weights**2).sum() / weights.sum()) if weights.size else 1.0
