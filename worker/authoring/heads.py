"""Logistic heads: learned from labelled images where prompts cannot say it.

A head is a vector and a bias; its logit is their sum with an embedding. It is fitted by logistic
regression with an L2 penalty (scikit-learn). Embeddings are unit vectors, so one range of penalties
suits all models and nothing needs standardising.

How strong the penalty is, the held-out folds say: of all strengths whose mean log loss is within
one standard error of the best, the strongest (Hastie, Tibshirani and Friedman 2009, section 7.10).
What folds cannot tell apart goes to the plainer head, which leans less on what one source has in
common. Classes are not weighted: weighting them orders images no better, and moves every
probability off.

Of an image with several rows the head is fitted on one, as the worst row decides: a first fit, on
their means, says which of them speaks loudest (the first step of mi-SVM; Andrews et al. 2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Example, Floats, Labels
from worker.authoring.folds import Folds, Groups, folds_of
from worker.errors import Misconfigured
from worker.types import Embedding

STRENGTHS: Final = tuple(float(10**power) for power in np.arange(-1.0, 3.1, 0.5))
"""Values of scikit-learn's C, the strongest penalty first."""

FEWEST: Final = 20
"""Images of each kind: there are hundreds of numbers to be fitted."""

_ITERATIONS: Final = 10_000


class Logit(NamedTuple):
    """logit = vector · x + bias; ``vector`` [dimension] float32."""

    vector: NDArray[np.float32]
    bias: float

    def of(self, rows: NDArray[np.floating]) -> Floats:
        logits: Floats = rows.astype(np.float64) @ self.vector.astype(np.float64) + self.bias
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A head, and by fold those that the other folds give. ``strength`` is scikit-learn's C,
    ``loss`` the mean log loss on the folds that were held out."""

    head: Logit
    without_fold: tuple[Logit, ...]
    strength: float
    loss: float


def unseen_folds(examples: Sequence[Example], labels: Labels, duplicates: Groups) -> Folds:
    """Folds to learn a head by: those of ``folds_of``, except that sources of which no image shows
    the category are held out whole, so that recognising a source counts for nothing. Raises
    ``ValueError`` as ``folds_of`` does."""
    folds = folds_of(examples, labels, duplicates)
    shown = {example.source for example, shows in zip(examples, labels, strict=True) if shows}
    others = [
        place
        for place, example in enumerate(examples)
        if example.source is not None and example.source not in shown
    ]
    count = min(int(folds.fold.max()) + 1, len({examples[place].source for place in others}))
    if folds.by_source or count < 2:
        return folds
    from sklearn.model_selection import GroupKFold

    fold = folds.fold.copy()
    sources = [examples[place].source for place in others]
    for number, (_, held_out) in enumerate(GroupKFold(count).split(others, groups=sources)):
        fold[np.array(others)[held_out]] = number
    said = "of the images that do not show it, whole sources were held out"
    return Folds(fold, warning=f"{folds.warning}; {said}" if folds.warning else said)


def learn(
    embeddings: Sequence[Embedding],
    labels: Labels,
    weights: Floats,
    folds: Groups,
    duplicates: Groups,
) -> Learned:
    """Fit a head to images. ``labels`` says which of them show it, ``folds`` which are held out
    together, from 0; what is held out takes its near-duplicates along. Raises ``Misconfigured`` for
    too few images of either kind."""
    check_counts(labels)
    kept = [
        (folds != fold) & ~np.isin(duplicates, duplicates[folds == fold])
        for fold in range(int(folds.max()) + 1)
    ]
    if any(len(set(labels[rest].tolist())) < 2 for rest in kept):
        raise Misconfigured(
            "too many of the images are near-duplicates: without a fifth of them and their "
            "duplicates, none is left that shows it, or none that does not; label others"
        )
    tried = []
    for strength in STRENGTHS:
        heads = tuple(
            _fit(
                [one for one, stays in zip(embeddings, rest, strict=True) if stays],
                labels[rest],
                weights[rest],
                strength,
            )
            for rest in kept
        )
        logits = np.array(
            [heads[fold].of(one.rows).max() for one, fold in zip(embeddings, folds, strict=True)]
        )
        tried.append((strength, heads, np.logaddexp(0.0, np.where(labels, -logits, logits))))
    strength, heads, losses = _plainest(tried, weights)
    return Learned(
        head=_fit(embeddings, labels, weights, strength),
        without_fold=heads,
        strength=strength,
        loss=float(np.average(losses, weights=weights)),
    )


def without_sources(
    examples: Sequence[Example], labels: Labels, weights: Floats, strength: float
) -> Mapping[str, Logit]:
    """Of each source of images that show it, the head that is fitted without any image of it, where
    enough others are left."""
    sources = [example.source for example in examples]
    heads = {}
    for source in sorted({of for of, shows in zip(sources, labels, strict=True) if shows and of}):
        rest = np.array([of != source for of in sources])
        if min(labels[rest].sum(), (~labels[rest]).sum()) >= FEWEST:
            kept = [one.embedding for one, stays in zip(examples, rest, strict=True) if stays]
            heads[source] = _fit(kept, labels[rest], weights[rest], strength)
    return heads


def check_counts(labels: Labels) -> None:
    """Raises ``Misconfigured`` for too few images of either kind."""
    shown = int(labels.sum())
    if min(shown, len(labels) - shown) < FEWEST:
        raise Misconfigured(
            f"{shown} images show it and {len(labels) - shown} do not; a head needs at least "
            f"{FEWEST} of each: label more, or say it with prompts"
        )


Tried = tuple[float, tuple[Logit, ...], Floats]


def _plainest(tried: Sequence[Tried], weights: Floats) -> Tried:
    """Of strengths, heads and losses by image, those of the strongest penalty that is as good as
    the best."""
    means = [float(np.average(losses, weights=weights)) for _, _, losses in tried]
    best = int(np.argmin(means))
    spread = float(np.sqrt(np.average((tried[best][2] - means[best]) ** 2, weights=weights)))
    standard_error = spread * float(np.sqrt(np.square(weights).sum()) / weights.sum())
    return next(
        one for one, mean in zip(tried, means, strict=True) if mean <= means[best] + standard_error
    )


def _fit(
    embeddings: Sequence[Embedding], labels: Labels, weights: Floats, strength: float
) -> Logit:
    means = np.array([one.rows.mean(axis=0, dtype=np.float64) for one in embeddings])
    head = _regress(means, labels, weights, strength)
    if all(len(one.rows) == 1 for one in embeddings):
        return head
    loudest = [one.rows[head.of(one.rows).argmax()] for one in embeddings]
    return _regress(np.array(loudest, dtype=np.float64), labels, weights, strength)


def _regress(rows: Floats, labels: Labels, weights: Floats, strength: float) -> Logit:
    from sklearn.linear_model import LogisticRegression

    # weights of mean one: a strength then means the same whatever unit they were written in
    fitted = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(
        rows, labels, sample_weight=weights / weights.mean()
    )
    return Logit(fitted.coef_[0].astype(np.float32), float(np.float32(fitted.intercept_[0])))
