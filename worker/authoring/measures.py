"""How good margins and probabilities are: AUROC, average precision and calibration error, each with
an interval by bootstrap.

Scores, labels and weights are vectors of one length; labels are booleans, weights above 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Floats, Labels
from worker.authoring.paired_bootstrap import interval, resampled_weights, weighted_auroc
from worker.authoring.results import Interval

_BINS: Final = 15


class Measures(NamedTuple):
    auroc: Interval
    average_precision: Interval
    ece: Interval


def measured(
    margins: Floats,
    probabilities: Floats,
    labels: Labels,
    weights: Floats,
    groups: NDArray[np.intp],
) -> Measures:
    """95 % intervals by drawing whole ``groups`` of images anew (Efron and Tibshirani 1993).

    How many images show it is a part of what a calibration error measures, so for that they are
    drawn together with the others. Resampling adds noise of its own, which only ever raises a mean
    of distances; so its interval is moved down by as much as resampling raises it on the average.
    What the sample's own noise adds to the estimate stays in: of few images it is an upper one.
    """
    by_margin, by_probability = _Ranked.of(margins), _Ranked.of(probabilities)
    chunks = [
        (
            weighted_auroc(margins, labels, drawn),
            _precision(by_margin, labels, drawn),
        )
        for drawn in resampled_weights(labels, weights, groups)
    ]
    auroc, precision = (np.concatenate(found) for found in zip(*chunks, strict=True))
    errors = np.concatenate(
        [
            _error(by_probability, probabilities, labels, drawn, _BINS)
            for drawn in resampled_weights(labels, weights, groups, apart=False)
        ]
    )
    errors[1:] -= errors[1:].mean() - errors[0]
    ece = interval(errors)
    return Measures(
        interval(auroc), interval(precision), Interval(ece.value, max(0.0, ece.low), ece.high)
    )


def auroc(scores: Floats, labels: Labels) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher score,
    ties counting half. Raises ``ValueError`` unless there are both."""
    if labels.all() or not labels.any():
        raise ValueError("AUROC needs positives and negatives")
    return float(weighted_auroc(scores, labels, np.ones((1, len(labels))))[0])


def average_precision(scores: Floats, labels: Labels, weights: Floats | None = None) -> float:
    """The mean of the precision at each positive, those with equal scores together. Raises
    ``ValueError`` without positives."""
    if not labels.any():
        raise ValueError("average precision needs positives")
    weights = np.ones(len(labels)) if weights is None else weights
    return float(_precision(_Ranked.of(scores), labels, weights[None, :])[0])


def expected_calibration_error(
    probabilities: Floats, labels: Labels, weights: Floats | None = None, bins: int = _BINS
) -> float:
    """Mean distance between what was predicted and what was so, over bins of equally many images
    (Nixon et al. 2019, https://arxiv.org/abs/1904.01685); 0 is best, 1 is worst."""
    weights = np.ones(len(labels)) if weights is None else weights
    ranked = _Ranked.of(probabilities)
    return float(_error(ranked, probabilities, labels, weights[None, :], bins)[0])


def log_loss(probabilities: Floats, labels: Labels, weights: Floats) -> float:
    """The mean of -log of the probability of what was so."""
    of_truth = np.where(labels, probabilities, 1.0 - probabilities)
    return float(np.average(-np.log(np.maximum(of_truth, 1e-12)), weights=weights))


class _Ranked(NamedTuple):
    """Places in ascending order of score, and where in it each different score begins."""

    order: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, scores: Floats) -> _Ranked:
        order = np.argsort(scores, kind="stable")
        _, starts = np.unique(scores[order], return_index=True)
        return cls(order, starts)


def _precision(ranked: _Ranked, labels: Labels, weights: Floats) -> Floats:
    """[resamples]: average precision under each row of ``weights`` [resamples, images]."""
    drawn = weights[:, ranked.order]
    positive = np.add.reduceat(np.where(labels[ranked.order], drawn, 0.0), ranked.starts, axis=1)
    every = np.add.reduceat(drawn, ranked.starts, axis=1)
    reached = np.cumsum(every[:, ::-1], axis=1)[:, ::-1]
    right = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    precision = np.divide(right, reached, out=np.zeros_like(right), where=reached > 0)
    found: Floats = (precision * positive).sum(axis=1) / positive.sum(axis=1)
    return found


def _error(
    ranked: _Ranked, probabilities: Floats, labels: Labels, weights: Floats, bins: int
) -> Floats:
    """[resamples]: expected calibration error under each row of ``weights``."""
    order = ranked.order
    drawn = weights[:, order]
    before = np.cumsum(drawn, axis=1)
    # by the middle of its weight an image is in one bin and no other
    middle = (before - drawn / 2) / before[:, -1:]
    bin_of = np.minimum((middle * bins).astype(np.intp), bins - 1)
    cells = bin_of + bins * np.arange(len(drawn))[:, None]
    excess = drawn * (probabilities[order] - labels[order])
    total = np.bincount(cells.ravel(), excess.ravel(), minlength=bins * len(drawn))
    found: Floats = np.abs(total.reshape(-1, bins)).sum(axis=1) / before[:, -1]
    return found
