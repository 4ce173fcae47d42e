"""How sure a rate is that was counted on few images: exact bounds to promise by, and an interval to
describe by.

A share of images, each with a weight, some of them near-duplicates, is as sure as that of fewer
that are equal and unlike: (Σ w)² / Σ w², summed over groups of near-duplicates (Kish 1965). Exact
binomial bounds (Clopper and Pearson 1934) on that number are those of Korn and Graubard 1998; where
nothing is weighted and nothing duplicated, it is the number of images.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Floats
from worker.authoring.results import Interval

ONE_SIDED: Final = 0.05
"""The chance that a rate is beyond a bound that a target is solved on."""
_Z: Final = 1.959963984540054  # of a normal distribution, 95 % lie within so many deviations


def effective_number(weights: Floats, groups: NDArray[np.intp]) -> float:
    """Of the images with these weights; 0 of none."""
    if not len(weights):
        return 0.0
    _, group_of = np.unique(groups, return_inverse=True)
    by_group = np.bincount(group_of, weights)
    return float(by_group.sum() ** 2 / (by_group**2).sum())


def upper(shares: Floats, number: float, chance: float = ONE_SIDED) -> Floats:
    """The rate below which, but for ``chance``, the truth is where ``shares`` of ``number``
    images were counted."""
    from scipy.special import betaincinv

    counts = shares * number
    every = counts > number - 1e-9
    bounds = betaincinv(counts + 1, np.where(every, 1.0, number - counts), 1 - chance)
    return np.where(every, 1.0, bounds)


def lower(shares: Floats, number: float, chance: float = ONE_SIDED) -> Floats:
    found: Floats = 1.0 - upper(1.0 - shares, number, chance)
    return found


def rate(share: float, number: float) -> Interval:
    """With its two-sided 95 % interval."""
    if not number:
        return Interval(math.nan, 0.0, 1.0)
    of = np.array([share])
    low, high = lower(of, number, ONE_SIDED / 2), upper(of, number, ONE_SIDED / 2)
    return Interval(share, float(low[0]), float(high[0]))


def fewest_to_show(rate: float, chance: float = ONE_SIDED) -> int:
    """Images among which none may be counted before their rate is shown to be at most ``rate``,
    above 0 and below 1: (1 - rate)ⁿ ≤ chance."""
    return math.ceil(math.log(chance) / math.log1p(-rate) - 1e-9)


def precision_at(recall: Floats, fpr: Floats, prevalence: float) -> Floats:
    """The share of positives among what reaches a threshold, where ``prevalence`` is positive; 0
    where nothing reaches it."""
    right, wrong = prevalence * recall, (1 - prevalence) * fpr
    return np.divide(right, right + wrong, out=np.zeros_like(right), where=right + wrong > 0)


def wilson(successes: float, trials: float) -> Interval:
    """The share of ``trials`` that were successes, with Wilson's 95 % interval (Wilson 1927; Brown,
    Cai and DasGupta 2001 recommend it for small numbers). Of no trials all is possible.

    Weighted counts are allowed where ``trials`` is their effective number.
    """
    if not trials:
        return Interval(math.nan, 0.0, 1.0)
    share = successes / trials
    centre = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = (
        _Z
        * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
        / (1 + _Z**2 / trials)
    )
    # Rounding must not leave the share outside, where it is 0 or 1
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
