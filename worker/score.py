"""From embeddings to decisions: pure, and the same to the last bit however images are batched.

For an image embedding x and a category,

    margin = aggregate(s · cos(x, prompts)) - aggregate(s · cos(x, contrasts))
    probability = sigmoid(scale · margin + bias)

with s the model's logit scale, as in CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020,
section 2.3; embeddings of templates are averaged as in its section 3.1.4), and Platt scaling (Platt
1999) for the probability. The aggregate ``logmeanexp`` is log(sum w·exp(l) / sum w) over logits l
and weights w: a mean and no sum, so that a category does not grow louder with the number of its
prompts. Uncalibrated categories have scale 1 and bias 0.

Why the bits are the same: the order in which a matrix product is summed depends on the library,
the processor and the size of the batch, so here no order can matter. Image embeddings are float16
of at most 1 in magnitude: multiples of 2**-24. Prompt vectors are rounded to ``PROMPT_GRID``,
multiples of 2**-22, which moves a cosine by less than 1e-5. Products are then multiples of 2**-46
and, as sum |x_i·v_i| <= sqrt(dimension) for a unit vector v, sums of any of them stay below 2**7 up
to ``MAX_DIMENSION``: at most 53 bits, so every partial sum is exact in float64. All that follows
works on one element, or on one segment of one row, at a time. (Only exp and log may differ in their
last bit from one kind of processor to another.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.policy import Category, Decision, Policy, Thresholds
from worker.types import Float16Rows

Float64s = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_DIMENSION: Final = 2**13
PROMPT_GRID: Final = 2.0**-22
_BLOCK_ROWS: Final = 512  # in float64 these fit into a core's cache, up to 1024 dimensions or so
_SEVERITY: Final = {Decision.ALLOW: 0, Decision.REVIEW: 1, Decision.BLOCK: 2}


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """A policy ready to score: its categories that are not off, in the order of the file.

    A segment is the prompts or the contrasts of a category: of category c, segments 2c and 2c + 1.
    Columns are the segments' texts one after another; many share a text, and ``vectors`` holds
    each text once.
    """

    policy: Policy
    categories: tuple[Category, ...]
    calibrated: tuple[bool, ...]  #: by category: whether its calibration fits its margins
    thresholds: Mapping[str | None, tuple[Thresholds, ...]]  #: by tenant, None for all others
    logit_scale: float
    vectors: Float64s  #: [dimension, texts], multiples of 2**-22
    texts: tuple[str, ...]  #: by column
    text_of: Indices  #: by column: its text's place in ``vectors``
    weights: Float64s  #: by column; of one segment they sum to 1
    log_weights: Float64s  #: by column
    columns: tuple[slice, ...]  #: by segment
    starts: Indices  #: by segment: its first column
    segment_of: Indices  #: by column
    segments_by_max: Indices
    segments_by_mean: Indices
    scale: Float64s  #: by category
    bias: Float64s  #: by category

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Ids of the categories without a calibration for the margins they have now."""
        pairs = zip(self.categories, self.calibrated, strict=True)
        return tuple(category.id for category, calibrated in pairs if not calibrated)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Margins and probabilities, both [rows, categories] float64, C-contiguous."""

    margins: Float64s
    probabilities: Float64s


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """What a category says of an image, by the ``row`` that is worst for it.

    ``threshold`` is the one that ``action`` was reached by or, for allow, the lowest one that was
    not. ``loudest_for`` and ``loudest_against`` are the texts that weigh most in the margin.
    """

    id: str
    parent: str | None
    probability: float
    margin: float
    threshold: float | None
    action: Decision
    loudest_for: str
    loudest_against: str
    calibrated: bool
    row: int


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to happen to an image. ``decided_by`` is the category that asked for it, None where
    all allow; ``worst_row`` the row of that category or, where all allow, of the likeliest."""

    decision: Decision
    decided_by: str | None
    worst_row: int
    categories: tuple[CategoryScore, ...]
    shadow: tuple[CategoryScore, ...]


# ---------------------------------------------------------------- scoring


def score(compiled: CompiledPolicy, rows: Float16Rows) -> Scores:
    """[n, dimension] to [n, categories]. Finite for finite rows, zero rows included.

    Raises ``ValueError`` for rows of another dimension or type, or that are not finite.
    """
    margins = np.empty((len(rows), len(compiled.categories)))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        margins[block] = _margins(compiled, _logits(compiled, rows[block]))
    return Scores(margins, _probabilities(compiled, margins))


def decide(compiled: CompiledPolicy, rows: Float16Rows, tenant: str | None) -> Decided:
    """Decide on one image by all of its rows, [n, dimension]; each category takes its worst row.

    Raises ``ValueError`` for no rows at all, and as ``score`` does.
    """
    return decide_batch(compiled, [rows], [tenant])[0]


def decide_batch(
    compiled: CompiledPolicy, images: Sequence[Float16Rows], tenants: Sequence[str | None]
) -> list[Decided]:
    """``decide`` for many images at once, with equal answers; holds 8 bytes for each prompt of
    each row meanwhile."""
    if not all(len(rows) for rows in images):
        raise ValueError("an image without rows was not examined; there is nothing to decide on")
    if not images:
        return []
    logits = _logits(compiled, np.concatenate(images))
    margins = _margins(compiled, logits)
    probabilities = _probabilities(compiled, margins)
    decisions, start = [], 0
    for rows, tenant in zip(images, tenants, strict=True):
        image = slice(start, start := start + len(rows))
        scores = Scores(margins[image], probabilities[image])
        decisions.append(_decided(compiled, logits[image], scores, tenant))
    return decisions


def _logits(compiled: CompiledPolicy, rows: Float16Rows) -> Float64s:
    """[n, columns]: logit scale times cosine of each row and each column's text."""
    if rows.dtype != np.float16 or rows.ndim != 2 or rows.shape[1] != len(compiled.vectors):
        raise ValueError(
            f"expected rows of {len(compiled.vectors)} float16, got {rows.dtype}{rows.shape}"
        )
    exact = rows.astype(np.float64, order="C")
    largest = max(exact.max(initial=0.0), -exact.min(initial=0.0))
    if not largest <= 1.0:
        if not math.isfinite(largest):
            raise ValueError("an embedding is not finite")
        np.clip(exact, -1.0, 1.0, out=exact)  # no unit vector; kept within what is summed exactly
    logits = (exact @ compiled.vectors) * compiled.logit_scale
    logits += 0.0  # there is a negative zero, and its sign would depend on the order of summation
    return np.take(logits, compiled.text_of, axis=1)


def _margins(compiled: CompiledPolicy, logits: Float64s) -> Float64s:
    """[n, columns] to [n, categories]."""
    # reduceat sums each segment of each row in a way that depends on its length alone
    highest = np.maximum.reduceat(logits, compiled.starts, axis=1)
    shares = np.exp(logits - np.take(highest, compiled.segment_of, axis=1))
    shares *= compiled.weights
    aggregates = np.add.reduceat(shares, compiled.starts, axis=1)
    np.log(aggregates, out=aggregates)
    aggregates += highest
    if (segments := compiled.segments_by_max).size:
        aggregates[:, segments] = highest[:, segments]
    if (segments := compiled.segments_by_mean).size:
        means = np.add.reduceat(logits * compiled.weights, compiled.starts, axis=1)
        aggregates[:, segments] = means[:, segments]
    return aggregates[:, 0::2] - aggregates[:, 1::2]


def _probabilities(compiled: CompiledPolicy, margins: Float64s) -> Float64s:
    z = margins * compiled.scale + compiled.bias
    small = np.exp(-np.abs(z))  # never above 1, so it cannot overflow
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


# ---------------------------------------------------------------- deciding


def _decided(
    compiled: CompiledPolicy, logits: Float64s, scores: Scores, tenant: str | None
) -> Decided:
    thresholds = compiled.thresholds.get(tenant, compiled.thresholds[None])
    worst = scores.margins.argmax(axis=0).tolist()
    found = [
        _category_score(compiled, index, row, logits[row], scores, thresholds[index])
        for index, row in enumerate(worst)
    ]
    modes = [category.mode for category in compiled.categories]
    enforced = tuple(one for one, mode in zip(found, modes, strict=True) if mode == "enforce")
    shadow = tuple(one for one, mode in zip(found, modes, strict=True) if mode == "shadow")
    first = max(enforced or shadow, key=lambda one: (_SEVERITY[one.action], one.probability))
    decision = first.action if enforced else Decision.ALLOW
    return Decided(
        decision=decision,
        decided_by=None if decision is Decision.ALLOW else first.id,
        worst_row=first.row,
        categories=enforced,
        shadow=shadow,
    )


def _category_score(
    compiled: CompiledPolicy,
    index: int,
    row: int,
    logits: Float64s,
    scores: Scores,
    thresholds: Thresholds,
) -> CategoryScore:
    category = compiled.categories[index]
    probability = float(scores.probabilities[row, index])
    action, threshold = _action(probability, thresholds)
    return CategoryScore(
        id=category.id,
        parent=category.parent,
        probability=probability,
        margin=float(scores.margins[row, index]),
        threshold=threshold,
        action=action,
        loudest_for=_loudest(compiled, 2 * index, logits),
        loudest_against=_loudest(compiled, 2 * index + 1, logits),
        calibrated=compiled.calibrated[index],
        row=row,
    )


def _action(probability: float, thresholds: Thresholds) -> tuple[Decision, float | None]:
    review, block = thresholds.review, thresholds.block
    if block is not None and probability >= block:
        return Decision.BLOCK, block
    if review is not None and probability >= review:
        return Decision.REVIEW, review
    return Decision.ALLOW, block if review is None else review


def _loudest(compiled: CompiledPolicy, segment: int, logits: Float64s) -> str:
    """The text of the highest logit, its weight counted in as ``logmeanexp`` does."""
    columns = compiled.columns[segment]
    loudness = logits[columns] + compiled.log_weights[columns]
    text: str = compiled.texts[columns.start + int(loudness.argmax())]
    return text
