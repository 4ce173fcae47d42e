"""Whether one way of scoring images orders them better than another, with intervals that count in
the sample, and how many ways were tried; pure.

Every way is measured on the same resamples of the same images (a paired bootstrap, Efron and
Tibshirani 1993, chapter 16), so what makes a sample easy or hard cancels out of the differences.
Whole groups of images are drawn, since images of one group (near-duplicates, a source) say the same
thing twice; those with an image that shows the category and those without are drawn apart, so that
none is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Floats, Labels
from worker.authoring.results import Interval

RESAMPLES = 1000
_AT_ONCE = 200  # resamples; weights of 20,000 images then take 32 MB


def weighted_auroc(scores: Floats, labels: Labels, weights: Floats) -> Floats:
    """[resamples]: AUROC of ``scores`` [images] under each row of ``weights`` [resamples, images].

    The share of pairs of a positive and a negative, each counted as often as its weights' product,
    in which the positive has the higher score; ties count half.
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    weights, labels = weights[:, order], labels[order]
    positive = np.add.reduceat(np.where(labels, weights, 0.0), starts, axis=1)
    negative = np.add.reduceat(np.where(labels, 0.0, weights), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    found: Floats = (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return found


def recall_at(scores: Floats, labels: Labels, weights: Floats, fpr: float) -> Floats:
    """[resamples]: the most of the positives that reach a threshold which no more than ``fpr``
    (0..1) of the negatives reach, under each row of ``weights``."""
    order = np.argsort(-scores, kind="stable")
    _, starts = np.unique(-scores[order], return_index=True)
    weights, labels = weights[:, order], labels[order]
    positive = np.add.reduceat(np.where(labels, weights, 0.0), starts, axis=1)
    negative = np.add.reduceat(np.where(labels, 0.0, weights), starts, axis=1)
    shown = np.cumsum(positive, axis=1) / positive.sum(axis=1, keepdims=True)
    alarms = np.cumsum(negative, axis=1) / negative.sum(axis=1, keepdims=True)
    found: Floats = np.where(alarms <= fpr + 1e-12, shown, 0.0).max(axis=1)
    return found


def resampled_weights(
    labels: Labels,
    weights: Floats,
    groups: NDArray[np.intp],
    resamples: int = RESAMPLES,
    *,
    apart: bool = True,
) -> Iterator[Floats]:
    """Chunks of [resamples, images]: each image's weight times how often its group was drawn. The
    first row of the first chunk is the sample itself. A draw without any image of a kind that there
    is would say nothing, and is left out. Unless those that show it are drawn ``apart``, how many
    they are varies too, as among images that were drawn whatever they show. The same at every call.
    """
    random = np.random.default_rng(20)
    _, group_of = np.unique(groups, return_inverse=True)
    shows = np.zeros(group_of.max() + 1, dtype=np.bool_)
    shows[group_of[labels]] = True
    kinds = (shows, ~shows) if apart else (np.ones_like(shows),)
    strata = [places for places in map(np.flatnonzero, kinds) if len(places)]
    yield weights[None, :]
    for start in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        drawn = np.zeros((rows, len(shows)))
        for places in strata:
            chances = np.full(len(places), 1 / len(places))
            drawn[:, places] = random.multinomial(len(places), chances, size=rows)
        images = drawn[:, group_of]
        # groups of both kinds may leave one of them out
        lacks = [images[:, kind].sum(axis=1) == 0 for kind in (labels, ~labels) if kind.any()]
        yield images[~np.any(lacks, axis=0)] * weights


def interval(estimates: Floats) -> Interval:
    """95 %, by percentiles. ``estimates`` [1 + resamples] has that of the sample first."""
    low, high = np.nanpercentile(estimates[1:], (2.5, 97.5))
    return Interval(float(estimates[0]), float(low), float(high))


def simultaneous(differences: Floats) -> list[Interval]:
    """An interval for each column of ``differences`` [1 + resamples, ways]: with 95 % confidence
    all of them hold together, however many there are (by the largest of the studentised deviations,
    Westfall and Young 1993, section 2.3). So the best of many ways that do nothing looks like it.
    """
    estimate, resampled = differences[0], differences[1:]
    spread = resampled.std(axis=0)
    moving = spread > 0
    widest = 0.0
    if moving.any():
        deviations = np.abs(resampled[:, moving] - estimate[moving]) / spread[moving]
        widest = float(np.percentile(deviations.max(axis=1), 95))
    return [
        Interval(float(value), float(value - widest * width), float(value + widest * width))
        for value, width in zip(estimate, spread, strict=True)
    ]
