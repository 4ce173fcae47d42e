"""From a policy and the embeddings of its texts to a ``CompiledPolicy``, once a version; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.compiled import (
    MAX_DIMENSION,
    VECTOR_GRID,
    CompiledPolicy,
    Exceptions,
    Float64s,
    Headed,
    Indices,
    Parts,
    Prompted,
)
from worker.errors import Misconfigured
from worker.lists import Lists
from worker.policy import Calibration, Category, Head, Policy, Prompt, Thresholds, margin_digest
from worker.types import ModelInfo

Segment = tuple[Prompt, ...]

_TEXTS_AT_ONCE: Final = 128


def texts_of(policy: Policy) -> tuple[str, ...]:
    """Every text that ``compile_policy`` needs an embedding of: prompts in their templates."""
    return tuple(
        dict.fromkeys(
            text
            for category in _scored(policy)
            for segment in _segments(category)
            for prompt in segment
            for text in _expanded(policy, prompt.text)
        )
    )


def compile_policy(
    policy: Policy, info: ModelInfo, text_embeddings: Mapping[str, NDArray[np.float32]]
) -> CompiledPolicy:
    """``text_embeddings`` holds a [dimension] vector for each of ``texts_of(policy)``.

    Raises ``Misconfigured`` for a prompt that the model has no direction for, and for a head that
    was fitted on other embeddings than the model's.
    """
    if info.dimension > MAX_DIMENSION:
        raise Misconfigured(
            f"the model {info.name!r} has {info.dimension} dimensions; at most {MAX_DIMENSION} can "
            f"be scored"
        )
    categories = _scored(policy)
    segments = [segment for category in categories for segment in _segments(category)]
    kinds = np.array([c.aggregate for c in categories for _ in _segments(c)], dtype=np.str_)
    sizes = [len(segment) for segment in segments]
    ends = list(accumulate(sizes))
    starts = [end - size for end, size in zip(ends, sizes, strict=True)]
    texts = tuple(prompt.text for segment in segments for prompt in segment)
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    heads = [_checked(category.head, category, info) for category in categories if category.head]
    lengths = [math.hypot(*head.vector) for head in heads]

    weights = np.array([share for segment in segments for share in _shares(segment)])
    parts = _parts(categories, columns_of_texts=len(texts))
    calibrations = [_calibration(policy, category, info) for category in categories]
    calibrated = tuple(calibration is not None for calibration in calibrations)
    return CompiledPolicy(
        policy=policy,
        lists=Lists(policy.lists),
        categories=categories,
        parts=parts,
        calibrated=calibrated,
        thresholds=_thresholds(policy, categories, calibrated),
        vectors=_columns(
            info.dimension,
            [
                *_directions(policy, tuple(places), text_embeddings),
                *(_rounded(np.array([h.vector]) / n) for h, n in zip(heads, lengths, strict=True)),
            ],
        ),
        gains=np.array([info.logit_scale] * len(places) + lengths),
        offsets=np.array([0.0] * len(places) + [head.bias for head in heads]),
        texts=texts,
        vector_of=_indices(
            [*(places[text] for text in texts), *range(len(places), len(places) + len(heads))]
        ),
        weights=weights,
        log_weights=np.log(weights),
        columns=tuple(slice(start, end) for start, end in zip(starts, ends, strict=True)),
        starts=_indices(starts),
        segment_of=np.repeat(np.arange(len(segments), dtype=np.intp), sizes),
        segments_by_max=np.flatnonzero(kinds == "max"),
        segments_by_mean=np.flatnonzero(kinds == "mean"),
        prompted=_prompted(categories, parts),
        headed=_headed(categories),
        exceptions=_exceptions(categories, parts),
        at_least_frames=tuple(category.at_least_frames for category in categories),
        scale=np.array([c.scale if c else 1.0 for c in calibrations]),
        bias=np.array([c.bias if c else 0.0 for c in calibrations]),
        points={
            place: (np.array(c.points)[:, 0], np.array(c.points)[:, 1])
            for place, c in enumerate(calibrations)
            if c and c.points
        },
    )


def _scored(policy: Policy) -> tuple[Category, ...]:
    return tuple(category for category in policy.categories if category.mode != "off")


def _segments(category: Category) -> list[Segment]:
    """Its prompts, its contrasts and each of its exceptions, as far as it has them."""
    segments = [category.prompts, category.contrast, *(e.prompts for e in category.exceptions)]
    return [segment for segment in segments if segment]


# ---------------------------------------------------------------- where what stands


def _parts(categories: Sequence[Category], columns_of_texts: int) -> tuple[Parts, ...]:
    parts = []
    segment = exception = 0
    column = columns_of_texts
    for category in categories:
        many = len(category.exceptions)
        contrast = segment + bool(category.prompts)
        parts.append(
            Parts(
                prompts=segment if category.prompts else None,
                contrast=contrast if category.contrast else None,
                exceptions=range(exception, exception + many),
                head=column if category.head else None,
            )
        )
        segment += len(_segments(category))
        exception += many
        column += category.head is not None
    return tuple(parts)


def _prompted(categories: Sequence[Category], parts: Sequence[Parts]) -> Prompted:
    places = [place for place, category in enumerate(categories) if category.prompts]
    heads = [categories[place].head for place in places]
    return Prompted(
        categories=_indices(places),
        prompts=_indices(parts[place].prompts for place in places),
        contrasts=_indices(parts[place].contrast for place in places),
        shares=np.array([1.0 - head.weight if head else 1.0 for head in heads]),
    )


def _headed(categories: Sequence[Category]) -> Headed:
    heads = [(place, category.head) for place, category in enumerate(categories) if category.head]
    return Headed(
        categories=_indices(place for place, _ in heads),
        shares=np.array([head.weight for _, head in heads]),
    )


def _exceptions(categories: Sequence[Category], parts: Sequence[Parts]) -> Exceptions:
    found = [
        (place, contrast + 1 + number, contrast, dampener.weight)
        for place, category in enumerate(categories)
        if (contrast := parts[place].contrast) is not None
        for number, dampener in enumerate(category.exceptions)
    ]
    dampened = [place for place, category in enumerate(categories) if category.exceptions]
    return Exceptions(
        segments=_indices(segment for _, segment, _, _ in found),
        contrasts=_indices(contrast for _, _, contrast, _ in found),
        weights=np.array([weight for *_, weight in found]),
        categories=_indices(dampened),
        starts=_indices(parts[place].exceptions.start for place in dampened),
    )


def _indices(places: Iterable[int | None]) -> Indices:
    return np.array(list(places), dtype=np.intp)


# ---------------------------------------------------------------- vectors and weights


def _expanded(policy: Policy, text: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", text) for template in policy.templates)


def _directions(
    policy: Policy, texts: Sequence[str], embeddings: Mapping[str, NDArray[np.float32]]
) -> Iterator[Float64s]:
    """Of each text the mean of its templates, of length one: blocks of [texts, dimension].

    In few large steps: numpy gives up Python's lock at each and takes it back before a thread that
    waits for it has woken, so of many small ones others would wait for the last.
    """
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        block = texts[start : start + _TEXTS_AT_ONCE]
        expanded = [[embeddings[one] for one in _expanded(policy, text)] for text in block]
        of_templates = _units(block, np.array(expanded, dtype=np.float64))
        yield _rounded(_units(block, of_templates.sum(axis=1)))


def _units(texts: Sequence[str], vectors: Float64s) -> Float64s:
    """[texts, ..., dimension], each brought to length one."""
    squares = np.square(vectors).reshape(-1, vectors.shape[-1])
    # fsum rounds once, so no library's order of summation matters
    lengths = np.array([math.sqrt(math.fsum(row.tolist())) for row in squares])
    lengths = lengths.reshape(vectors.shape[:-1])
    for text, of_text in zip(texts, lengths, strict=True):
        if not np.all((of_text > 0) & (of_text < math.inf)):
            raise Misconfigured(f"the model has no direction for the prompt {text!r}; reword it")
    units: Float64s = vectors / lengths[..., None]
    return units


def _rounded(unit: Float64s) -> Float64s:
    rounded: Float64s = np.rint(unit / VECTOR_GRID) * VECTOR_GRID
    return rounded


def _columns(dimension: int, blocks: Sequence[Float64s]) -> Float64s:
    """[dimension, vectors] of blocks of [vectors, dimension]; one by one, as numpy keeps Python's
    lock until all are in place."""
    columns = np.empty((dimension, sum(len(block) for block in blocks)))
    start = 0
    for block in blocks:
        columns[:, start : start + len(block)] = block.T
        start += len(block)
    return columns


def _shares(segment: Segment) -> Float64s:
    weights = np.array([prompt.weight for prompt in segment])
    return weights / math.fsum(weights)


def _checked(head: Head, category: Category, info: ModelInfo) -> Head:
    if head.space != info.space:
        raise Misconfigured(
            f"the head {head.file} of `{category.id}` was fitted on embeddings of another model "
            f"than {info.name!r} as it is loaded, or of other preprocessing; fit it again with "
            f"`imagewarden policy fit-head`"
        )
    if len(head.vector) != info.dimension:
        raise Misconfigured(
            f"the head {head.file} of `{category.id}` has {len(head.vector)} dimensions, while "
            f"{info.name!r} has {info.dimension}; fit it again with `imagewarden policy fit-head`"
        )
    return head


# ---------------------------------------------------------------- calibrations and thresholds


def _calibration(policy: Policy, category: Category, info: ModelInfo) -> Calibration | None:
    calibration = category.calibration
    if calibration and calibration.fitted_for == margin_digest(policy, category, info):
        return calibration
    return None


def _thresholds(
    policy: Policy, categories: Sequence[Category], calibrated: Sequence[bool]
) -> dict[str | None, tuple[Thresholds, ...]]:
    """By tenant, None for those without overrides; by category, in order."""
    written: dict[tuple[str | None, str], Thresholds] = {
        (o.tenant, o.category): o.thresholds for o in policy.overrides
    }

    def in_force(tenant: str | None, category: Category, calibrated: bool) -> Thresholds:
        thresholds = written.get((tenant, category.id), category.thresholds)
        if calibrated or category.block_uncalibrated:
            return thresholds
        review = thresholds.block if thresholds.review is None else thresholds.review
        return Thresholds(review, None)

    return {
        tenant: tuple(map(partial(in_force, tenant), categories, calibrated))
        for tenant in (None, *(override.tenant for override in policy.overrides))
    }
