"""From embeddings to decisions: pure, and the same to the last bit however images are batched.

For an image embedding x and a category with head weight w (0 without a head, 1 without prompts),

    against = aggregate(s · cos(x, contrasts))
    margin = (1 - w) · (aggregate(s · cos(x, prompts)) - against) + w · (head · x + bias)
             - sum of weight · max(0, aggregate(s · cos(x, exception)) - against) over exceptions
    probability = calibration(margin)

with s the model's logit scale, as in CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020,
section 2.3; embeddings of templates are averaged as in its section 3.1.4), and sigmoid(scale ·
margin + bias) (Platt 1999) or a line through fitted points for the probability. The aggregate
``logmeanexp`` is log(sum w·exp(l) / sum w) over logits l and weights w: a mean and no sum, so that
a category does not grow louder with the number of its prompts. Uncalibrated categories have scale 1
and bias 0.

Why the bits are the same: the order in which a matrix product is summed depends on the library,
the processor and the size of the batch, so here no order can matter. Image embeddings are float16
of at most 1 in magnitude: multiples of 2**-24. Prompt vectors are rounded to ``VECTOR_GRID``,
multiples of 2**-22, which moves a cosine by less than 1e-5. Products are then multiples of 2**-46
and, as sum |x_i·v_i| <= sqrt(dimension) for a unit vector v, sums of any of them stay below 2**7 up
to ``MAX_DIMENSION``: at most 53 bits, so every partial sum is exact in float64. A head is one more
unit vector, rounded likewise, and its length is multiplied in after the sum, where a prompt has s.
All that follows works on one element, or on one segment of one row, at a time. (Only exp and log
may differ in their last bit from one kind of processor to another.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from worker.compiled import CompiledPolicy, Float64s, Indices, Parts
from worker.frames import deciding_rows
from worker.policy import SEVERITY, Decision, SeverityBand, Thresholds
from worker.types import Embedding, Float16Rows

_BLOCK_ROWS: Final = 512  # in float64 these fit into a core's cache, up to 1024 dimensions or so


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What margins are made of, each [rows, ...] float64: ``aggregates`` by segment,
    ``dampening``, what each exception takes off, by exception, and ``margins`` by category."""

    aggregates: Float64s
    dampening: Float64s
    margins: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Margins and probabilities, both [rows, categories] float64, C-contiguous."""

    margins: Float64s
    probabilities: Float64s


class CategoryScore(NamedTuple):
    """What a category says of an image, by the ``row`` that speaks for it.

    ``threshold`` is the one that ``action`` was reached by or, for allow, the lowest one that was
    not. ``loudest_for`` and ``loudest_against`` are the texts that weigh most in the margin, None
    where none do; ``dampened_by`` is the loudest text of the exception that took off most.
    """

    id: str
    parent: str | None
    probability: float
    margin: float
    threshold: float | None
    action: Decision
    severity: str | None
    loudest_for: str | None
    loudest_against: str | None
    dampened_by: str | None
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
    """[n, dimension] to [n, categories], each row for itself. Finite for finite rows, zero rows
    included.

    Raises ``ValueError`` for rows of another dimension or type, or that are not finite.
    """
    margins = np.empty((len(rows), len(compiled.categories)))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        margins[block] = terms(compiled, logits(compiled, rows[block])).margins
    return Scores(margins, probabilities(compiled, margins))


def logits(compiled: CompiledPolicy, rows: Float16Rows) -> Float64s:
    """[n, dimension] to [n, columns]: of a text, logit scale times cosine; of a head, its logit."""
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
    products = (exact @ compiled.vectors) * compiled.gains
    products += compiled.offsets  # of a text 0.0, which makes a negative zero, whose sign would
    # depend on the order of summation, a positive one
    return products.take(compiled.vector_of, axis=1)


def terms(compiled: CompiledPolicy, logits: Float64s) -> Terms:
    """[n, columns] to what comes of them."""
    prompted, headed, exceptions = compiled.prompted, compiled.headed, compiled.exceptions
    aggregates = _aggregates(compiled, logits[:, : len(compiled.texts)])
    margins = np.zeros((len(logits), len(compiled.categories)))
    leads = aggregates.take(prompted.prompts, axis=1)  # faster than by brackets
    leads -= aggregates.take(prompted.contrasts, axis=1)
    margins[:, prompted.categories] = prompted.shares * leads
    margins[:, headed.categories] += headed.shares * logits[:, len(compiled.texts) :]
    leads = aggregates.take(exceptions.segments, axis=1)
    leads -= aggregates.take(exceptions.contrasts, axis=1)
    dampening = exceptions.weights * np.maximum(leads, 0.0)
    if exceptions.starts.size:
        margins[:, exceptions.categories] -= np.add.reduceat(dampening, exceptions.starts, axis=1)
    return Terms(aggregates, dampening, margins)


def _aggregates(compiled: CompiledPolicy, logits: Float64s) -> Float64s:
    """[n, columns of texts] to [n, segments]."""
    if not compiled.starts.size:
        return np.empty((len(logits), 0))
    # reduceat sums each segment of each row in a way that depends on its length alone
    highest = np.maximum.reduceat(logits, compiled.starts, axis=1)
    shares = np.exp(logits - highest.take(compiled.segment_of, axis=1))
    shares *= compiled.weights
    aggregates = np.add.reduceat(shares, compiled.starts, axis=1)
    np.log(aggregates, out=aggregates)
    aggregates += highest
    if (segments := compiled.segments_by_max).size:
        aggregates[:, segments] = highest[:, segments]
    if (segments := compiled.segments_by_mean).size:
        means = np.add.reduceat(logits * compiled.weights, compiled.starts, axis=1)
        aggregates[:, segments] = means[:, segments]
    return aggregates


def probabilities(compiled: CompiledPolicy, margins: Float64s) -> Float64s:
    """[n, categories] to [n, categories], whether the margins are of rows or of images."""
    z = margins * compiled.scale + compiled.bias
    small = np.exp(-np.abs(z))  # never above 1, so it cannot overflow
    found = np.where(z >= 0, 1.0, small) / (1.0 + small)
    for category, (fitted, reached) in compiled.points.items():
        line = np.interp(margins[:, category], fitted, reached)
        found[:, category] = np.minimum(line, reached[-1])  # its last bit may go beyond
    return found


def image_margins(compiled: CompiledPolicy, embeddings: Sequence[Embedding]) -> Float64s:
    """[images, categories]: the margins that images are decided by, their frames counted as each
    category says. Raises ``ValueError`` as ``decide`` does."""
    if not embeddings:
        return np.empty((0, len(compiled.categories)))
    rows = np.concatenate([embedding.rows for embedding in embeddings])
    frames = np.concatenate([embedding.facts.rows for embedding in embeddings])
    counts = [len(embedding.rows) for embedding in embeddings]
    starts = np.cumsum([0, *counts[:-1]])
    return margins_of_images(compiled, score(compiled, rows).margins, starts, frames)


def margins_of_images(
    compiled: CompiledPolicy, margins: Float64s, starts: Indices, frames: Indices
) -> Float64s:
    """Margins of rows, [rows, categories], to those of images, [images, categories].

    ``starts`` has each image's first row, ascending from 0; ``frames`` each row's frame.
    """
    of_images = np.maximum.reduceat(margins, starts, axis=0)
    image_of = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(margins)))
    for category, at_least in enumerate(compiled.at_least_frames):
        if at_least > 1 and len(starts) < len(margins):
            rows = deciding_rows(margins[:, category], image_of, frames, at_least)
            of_images[:, category] = margins[rows, category]
    return of_images


# ---------------------------------------------------------------- deciding


def decide(
    compiled: CompiledPolicy,
    rows: Float16Rows,
    tenant: str | None,
    frames: Sequence[int] | None = None,
) -> Decided:
    """Decide on one image by all of its rows, [n, dimension]. ``frames`` has the frame that each
    row was taken from; None: from one each.

    Raises ``ValueError`` for no rows at all, and as ``score`` does.
    """
    if not len(rows):
        raise ValueError("an image without rows was not examined; there is nothing to decide on")
    by_column = logits(compiled, rows)
    by_term = terms(compiled, by_column)
    worst = _worst_rows(compiled, by_term.margins, frames)
    found_at = probabilities(compiled, by_term.margins).tolist()
    # of each text its logit, with its weight counted in as ``logmeanexp`` does
    loudness = by_column[:, : len(compiled.texts)] + compiled.log_weights
    thresholds = compiled.thresholds.get(tenant, compiled.thresholds[None])
    found = [
        _category_score(
            compiled, index, row, loudness[row], by_term, found_at[row][index], thresholds[index]
        )
        for index, row in enumerate(worst)
    ]
    modes = [category.mode for category in compiled.categories]
    enforced = tuple(one for one, mode in zip(found, modes, strict=True) if mode == "enforce")
    shadow = tuple(one for one, mode in zip(found, modes, strict=True) if mode == "shadow")
    first = max(enforced or shadow, key=lambda one: (SEVERITY[one.action], one.probability))
    decision = first.action if enforced else Decision.ALLOW
    return Decided(
        decision=decision,
        decided_by=None if decision is Decision.ALLOW else first.id,
        worst_row=first.row,
        categories=enforced,
        shadow=shadow,
    )


def _worst_rows(
    compiled: CompiledPolicy, margins: Float64s, frames: Sequence[int] | None
) -> list[int]:
    """By category, the row that speaks for the image."""
    worst: list[int] = margins.argmax(axis=0).tolist()
    if len(margins) > 1:
        image_of = np.zeros(len(margins), dtype=np.intp)
        frame_of = np.arange(len(margins)) if frames is None else np.array(frames, dtype=np.intp)
        for category, at_least in enumerate(compiled.at_least_frames):
            if at_least > 1:
                [row] = deciding_rows(margins[:, category], image_of, frame_of, at_least)
                worst[category] = int(row)
    return worst


def _category_score(
    compiled: CompiledPolicy,
    index: int,
    row: int,
    loudness: Float64s,
    terms: Terms,
    probability: float,
    thresholds: Thresholds,
) -> CategoryScore:
    category, parts = compiled.categories[index], compiled.parts[index]
    action, threshold = _action(probability, thresholds)
    return CategoryScore(
        id=category.id,
        parent=category.parent,
        probability=probability,
        margin=float(terms.margins[row, index]),
        threshold=threshold,
        action=action,
        severity=_severity(probability, category.severity),
        loudest_for=None if parts.prompts is None else loudest(compiled, parts.prompts, loudness),
        loudest_against=(
            None if parts.contrast is None else loudest(compiled, parts.contrast, loudness)
        ),
        dampened_by=_dampened_by(compiled, parts, row, loudness, terms),
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


def loudest(compiled: CompiledPolicy, segment: int, loudness: Float64s) -> str:
    """The loudest text of a segment. ``loudness`` is that of one row, [columns of texts]."""
    columns = compiled.columns[segment]
    text: str = compiled.texts[columns.start + int(loudness[columns].argmax())]
    return text


def _dampened_by(
    compiled: CompiledPolicy, parts: Parts, row: int, loudness: Float64s, terms: Terms
) -> str | None:
    if not parts.exceptions:
        return None
    taken_off = terms.dampening[row, parts.exceptions.start : parts.exceptions.stop]
    most = int(taken_off.argmax())
    if taken_off[most] <= 0:
        return None
    return loudest(compiled, int(compiled.exceptions.segments[parts.exceptions[most]]), loudness)


def _severity(probability: float, bands: Sequence[SeverityBand]) -> str | None:
    reached = [band.name for band in bands if probability >= band.probability]
    return reached[-1] if reached else None
