"""How sure a share is that was counted."""

from __future__ import annotations

import math
from typing import Final

from worker.authoring.results import Interval

_Z: Final = 1.959963984540054  # of a normal distribution, 95 % lie within so many deviations


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
