"""From margins to probabilities: Platt scaling, prevalence, and how good the probabilities are.

All pure; margins, probabilities and labels are vectors of one length, labels are booleans.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

_BINS: Final = 15
_FOLDS: Final = 5
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


def fit_platt(margins: Floats, labels: Labels) -> Platt:
    """The scale and bias under which the labels are likeliest.

    Platt 1999 with the smoothed targets of its section 2.2, so that margins that separate the
    labels have a finite answer; solved by Newton's method with backtracking, as in Lin, Lin and
    Weng 2007 (https://doi.org/10.1007/s10994-007-5018-6). Raises ``ValueError`` unless there are
    both positives and negatives, with finite margins.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not (positives and negatives and np.isfinite(margins).all()):
        raise ValueError("Platt scaling needs positives and negatives, with finite margins")
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([margins, np.ones_like(margins)], axis=1)
    solution = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    loss = _cross_entropy(design @ solution, targets)
    for _ in range(_STEPS):
        p = sigmoid(design @ solution)
        gradient = design.T @ (p - targets)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        direction = np.linalg.solve(hessian, gradient)
        slope, step = float(gradient @ direction), 1.0
        if slope < 1e-12:
            break
        while step > _SMALLEST_STEP:
            candidate = solution - step * direction
            if (lower := _cross_entropy(design @ candidate, targets)) < loss - 1e-4 * step * slope:
                solution, loss = candidate, lower
                break
            step /= 2
        else:
            break  # as exact as float64 can say
    return Platt(*solution.tolist())


def held_out(margins: Floats, labels: Labels) -> Floats:
    """For each image the log-odds (scale · margin + bias) by the images of the other folds alone.

    Every fold has its share of positives and negatives. Raises ``ValueError`` as ``fit_platt``
    does, and needs at least two of each kind.
    """
    folds = np.empty(len(labels), dtype=np.intp)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % _FOLDS
    found = np.empty_like(margins)
    for fold in range(_FOLDS):
        inside = folds == fold
        fitted = fit_platt(margins[~inside], labels[~inside])
        found[inside] = fitted.scale * margins[inside] + fitted.bias
    return found


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = _BINS) -> float:
    """Mean distance between what was predicted and what was so, over bins of equally many images
    (Nixon et al. 2019, https://arxiv.org/abs/1904.01685); 0 is best, 1 is worst."""
    order = np.argsort(probabilities, kind="stable")
    distances = [
        abs(probabilities[chosen].mean() - labels[chosen].mean()) * len(chosen)
        for chosen in np.array_split(order, bins)
        if len(chosen)
    ]
    return float(sum(distances) / len(labels))


def auroc(scores: Floats, labels: Labels) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher score,
    ties counting half. Raises ``ValueError`` unless there are both."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not (positives and negatives):
        raise ValueError("AUROC needs positives and negatives")
    _, values, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each value, from 1
    ranks_of_positives = float(ranks[values][labels].sum())
    return (ranks_of_positives - positives * (positives + 1) / 2) / (positives * negatives)


def sigmoid(z: Floats) -> Floats:
    """Log-odds to probabilities."""
    small = np.exp(-np.abs(z))  # never above 1, so it cannot overflow
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def _cross_entropy(z: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0.0, z) - targets * z).sum())


def log_odds(share: float) -> float:
    """Of a probability above 0 and below 1."""
    return float(np.log(share) - np.log1p(-share))
