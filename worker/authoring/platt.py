"""Platt scaling: from margins to log-odds by a scale and a bias; pure.

Margins, labels and weights are vectors of one length; labels are booleans, weights above 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from worker.authoring.examples import Floats, Labels

_STEPS: Final = 100
_SMALLEST_STEP: Final = 1e-10


class Platt(NamedTuple):
    """probability = sigmoid(scale · margin + bias)."""

    scale: float
    bias: float

    def probabilities(self, margins: Floats) -> Floats:
        return sigmoid(self.scale * margins + self.bias)

    def at_prevalence(self, fitted: float, live: float) -> Platt:
        """The same evidence where a share ``live`` is positive, and not ``fitted`` as in the data:
        Bayes' rule moves the log-odds by the difference of the priors' (Elkan 2001, theorem 2)."""
        return Platt(self.scale, self.bias + log_odds(live) - log_odds(fitted))


def fit_platt(margins: Floats, labels: Labels, weights: Floats | None = None) -> Platt:
    """The scale and bias under which the labels are likeliest, each as often as its weight says.

    Platt 1999 with the smoothed targets of its section 2.2, so that margins that separate the
    labels have a finite answer. Raises ``ValueError`` unless there are both positives and
    negatives, with finite margins.
    """
    scale, bias = _fit(np.stack([margins, np.ones_like(margins)], axis=1), labels, weights)
    return Platt(scale, bias)


def fit_temperature(margins: Floats, labels: Labels, weights: Floats | None = None) -> Platt:
    """The scale alone: the inverse of the temperature of Guo et al. 2017
    (https://arxiv.org/abs/1706.04599). The margin is taken at its word, so that 0 is even odds
    where half of the images show it; the bias is what their share is away from a half."""
    weights = np.ones(len(labels)) if weights is None else weights
    share = float(weights[labels].sum() / weights.sum())
    if not 0 < share < 1:
        raise ValueError("a calibration needs positives and negatives, with finite margins")
    balanced = weights * np.where(labels, 0.5 / share, 0.5 / (1 - share))
    [scale] = _fit(margins[:, None], labels, balanced)
    return Platt(scale, 0.0).at_prevalence(0.5, share)


def _fit(design: Floats, labels: Labels, weights: Floats | None) -> list[float]:
    """Coefficients of the columns of ``design``, by Newton's method with backtracking, as in Lin,
    Lin and Weng 2007 (https://doi.org/10.1007/s10994-007-5018-6)."""
    weights = np.ones(len(labels)) if weights is None else weights
    positives, negatives = float(weights[labels].sum()), float(weights[~labels].sum())
    if not (positives > 0 and negatives > 0 and np.isfinite(design).all()):
        raise ValueError("a calibration needs positives and negatives, with finite margins")
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    solution = np.zeros(design.shape[1])
    if len(solution) > 1:
        solution[-1] = np.log((positives + 1) / (negatives + 1))
    loss = _cross_entropy(design @ solution, targets, weights)
    for _ in range(_STEPS):
        p = sigmoid(design @ solution)
        gradient = design.T @ (weights * (p - targets))
        hessian = design.T @ (design * (weights * p * (1 - p))[:, None])
        direction = np.linalg.solve(hessian + 1e-12 * np.eye(len(solution)), gradient)
        slope, step = float(gradient @ direction), 1.0
        if slope < 1e-12:
            break
        while step > _SMALLEST_STEP:
            candidate = solution - step * direction
            lower = _cross_entropy(design @ candidate, targets, weights)
            if lower < loss - 1e-4 * step * slope:
                solution, loss = candidate, lower
                break
            step /= 2
        else:
            break  # as exact as float64 can say
    found: list[float] = solution.tolist()
    return found


def sigmoid(z: Floats) -> Floats:
    """Log-odds to probabilities."""
    small = np.exp(-np.abs(z))  # never above 1, so it cannot overflow
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def _cross_entropy(z: Floats, targets: Floats, weights: Floats) -> float:
    return float((weights * (np.logaddexp(0.0, z) - targets * z)).sum())


def log_odds(share: float) -> float:
    """Of a probability above 0 and below 1."""
    return float(np.log(share) - np.log1p(-share))
