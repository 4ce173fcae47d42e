"""From labelled margins to a ``Calibration``, by the three methods; pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from worker.authoring.examples import Floats, Labels
from worker.authoring.platt import fit_platt, fit_temperature, log_odds, sigmoid
from worker.policy import Calibration, Method

FEWEST_FOR_ISOTONIC: Final = 100
"""Of each kind. With fewer, steps follow the sample; Niculescu-Mizil and Caruana 2005 saw Platt
scaling ahead below about a thousand images in all."""

_SMALLEST_SCALE: Final = 0.001  # below it no margin makes a difference
_MOST_POINTS: Final = 20  # a file is read by people
_CLOSEST: Final = 1e-9  # to 0 and 1, so that log-odds are finite


def fit(
    method: Method, margins: Floats, labels: Labels, weights: Floats, fitted_for: str
) -> Calibration | None:
    """A calibration at the data's own share of positives; None where margins are no higher for
    images that show it. Of weights only their ratios count.

    Raises ``ValueError`` unless there are both positives and negatives, with finite margins.
    """
    # else the smoothing, which counts images, would depend on the weights' unit
    weights = weights / weights.mean()
    if method == "isotonic":
        points = _isotonic(margins, labels, weights)
        rises = points[-1][1] > points[0][1]
        return Calibration(fitted_for, method, points=points) if rises else None
    fitted = (fit_platt if method == "platt" else fit_temperature)(margins, labels, weights)
    if fitted.scale < _SMALLEST_SCALE or np.ptp(margins) == 0:  # where scale and bias are one
        return None
    return Calibration(fitted_for, method, scale=fitted.scale, bias=fitted.bias)


def probability(calibration: Calibration, margins: Floats) -> Floats:
    if calibration.method == "isotonic":
        xs, ys = np.array(calibration.points).T
        found: Floats = np.interp(margins, xs, ys)
        return found
    return sigmoid(calibration.scale * margins + calibration.bias)


def at_prevalence(calibration: Calibration, fitted: float, live: float) -> Calibration:
    """The same evidence where a share ``live`` is positive, and not ``fitted`` as in the data:
    Bayes' rule moves the log-odds by the difference of the priors' (Elkan 2001, theorem 2)."""
    shift = log_odds(live) - log_odds(fitted)
    if calibration.method != "isotonic":
        return replace(calibration, bias=calibration.bias + shift)
    moved = tuple(
        (margin, float(sigmoid(np.array(log_odds(within(share)) + shift))))
        for margin, share in calibration.points
    )
    return replace(calibration, points=moved)


def rounded(calibration: Calibration) -> Calibration:
    """As it is written: digits beyond these are noise."""
    return replace(
        calibration,
        scale=round(calibration.scale, 4),
        bias=round(calibration.bias, 4),
        points=tuple((round(x, 4), _rounded_share(y)) for x, y in calibration.points),
    )


def _rounded_share(share: float) -> float:
    """To four digits of what it is away from 0 or 1, so that it becomes neither."""
    share = within(share)
    return round(share, 3 - math.floor(math.log10(min(share, 1 - share))))


def within(share: float) -> float:
    """Kept off 0 and 1."""
    return min(max(share, _CLOSEST), 1 - _CLOSEST)


def _isotonic(margins: Floats, labels: Labels, weights: Floats) -> tuple[tuple[float, float], ...]:
    """Pool-adjacent-violators (Zadrozny and Elkan 2002) on the smoothed targets of Platt 1999,
    which keep it off 0 and 1, with a line from step to step."""
    from sklearn.isotonic import IsotonicRegression

    positives, negatives = float(weights[labels].sum()), float(weights[~labels].sum())
    if not (positives > 0 and negatives > 0 and np.isfinite(margins).all()):
        raise ValueError("a calibration needs positives and negatives, with finite margins")
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    steps = IsotonicRegression().fit(margins, targets, sample_weight=weights)
    # rounded first, as they will be written: what falls together is one point
    xs, first = np.unique(np.round(steps.X_thresholds_, 4), return_index=True)
    return _thinned(xs.tolist(), steps.y_thresholds_[first].tolist())


def _thinned(xs: list[float], ys: list[float]) -> tuple[tuple[float, float], ...]:
    """At most ``_MOST_POINTS`` of them: the point that changes the line least goes first
    (Visvalingam and Whyatt 1993). The ends stay."""
    while len(xs) > 2:
        x, y = np.array(xs), np.array(ys)
        slope = (y[2:] - y[:-2]) / (x[2:] - x[:-2])  # of the line without the point between
        off = np.abs(y[:-2] + slope * (x[1:-1] - x[:-2]) - y[1:-1]) * (x[2:] - x[:-2]) / 2
        least = int(off.argmin())
        if len(xs) <= _MOST_POINTS and off[least] > 0:
            break
        del xs[least + 1], ys[least + 1]
    return tuple(zip(xs, ys, strict=True))
