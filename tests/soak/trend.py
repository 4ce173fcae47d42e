"""Whether what was sampled over time stays where it is: a line is fitted, and its slope told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trend:
    """``growth`` is what the fitted line rises from the first sample to the last, ``low`` and
    ``high`` its 95 % interval (ordinary least squares; wider where samples depend on each other,
    by their autocorrelation at one step). ``allowed`` is the growth that says nothing."""

    name: str
    unit: str
    mean: float
    first: float
    last: float
    per_hour: float
    growth: float
    low: float
    high: float
    allowed: float

    @property
    def flat(self) -> bool:
        """It does not certainly grow by more than is allowed."""
        return self.low <= self.allowed


def trend(
    name: str, unit: str, seconds: Sequence[float], values: Sequence[float], allowed: float
) -> Trend:
    """Of at least three samples."""
    at, found = np.asarray(seconds, float), np.asarray(values, float)
    span = at[-1] - at[0]
    slope, start = np.polyfit(at, found, 1)
    left = found - (start + slope * at)
    spread = float(np.sqrt((left**2).sum() / max(1, len(found) - 2)))
    error = spread / float(np.sqrt(((at - at.mean()) ** 2).sum()))
    error *= np.sqrt(_dependence(left))
    growth = float(slope * span)
    return Trend(
        name=name,
        unit=unit,
        mean=float(found.mean()),
        first=float(found[0]),
        last=float(found[-1]),
        per_hour=float(slope * 3600),
        growth=growth,
        low=growth - 1.96 * error * span,
        high=growth + 1.96 * error * span,
        allowed=allowed,
    )


def _dependence(left: np.ndarray) -> float:
    """How many samples count for one: (1 + r) / (1 - r), after Bartlett, r within 0 to 0.95."""
    power = float((left**2).sum())
    if not power:
        return 1.0
    r = min(max(float((left[1:] * left[:-1]).sum()) / power, 0.0), 0.95)
    return (1 + r) / (1 - r)
