"""From a policy and the embeddings of its texts to a ``CompiledPolicy``, once a version; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from worker.errors import Misconfigured
from worker.policy import Calibration, Category, Policy, Prompt, Thresholds, margin_digest
from worker.score import MAX_DIMENSION, PROMPT_GRID, CompiledPolicy, Float64s
from worker.types import ModelInfo


def texts_of(policy: Policy) -> tuple[str, ...]:
    """Every text that ``compile_policy`` needs an embedding of: prompts in their templates."""
    return tuple(
        dict.fromkeys(
            text
            for category in _scored(policy)
            for prompt in (*category.prompts, *category.contrast)
            for text in _expanded(policy, prompt.text)
        )
    )


def compile_policy(
    policy: Policy, info: ModelInfo, text_embeddings: Mapping[str, NDArray[np.float32]]
) -> CompiledPolicy:
    """``text_embeddings`` holds a [dimension] vector for each of ``texts_of(policy)``.

    Raises ``Misconfigured`` for a prompt that the model has no direction for.
    """
    if info.dimension > MAX_DIMENSION:
        raise Misconfigured(
            f"the model {info.name!r} has {info.dimension} dimensions; at most {MAX_DIMENSION} can "
            f"be scored"
        )
    categories = _scored(policy)
    segments = [side for category in categories for side in (category.prompts, category.contrast)]
    kinds = np.repeat([category.aggregate for category in categories], 2)
    texts = tuple(prompt.text for segment in segments for prompt in segment)
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = [_vector(text, _expanded(policy, text), text_embeddings) for text in places]
    lengths = [len(segment) for segment in segments]
    ends = list(accumulate(lengths))
    weights = np.concatenate([_shares(segment) for segment in segments])
    calibrations = [_calibration(policy, category, info) for category in categories]
    calibrated = tuple(calibration is not None for calibration in calibrations)
    return CompiledPolicy(
        policy=policy,
        categories=categories,
        calibrated=calibrated,
        thresholds=_thresholds(policy, categories, calibrated),
        logit_scale=info.logit_scale,
        vectors=np.ascontiguousarray(np.array(vectors).T),
        texts=texts,
        text_of=np.array([places[text] for text in texts], dtype=np.intp),
        weights=weights,
        log_weights=np.log(weights),
        columns=tuple(slice(end - length, end) for end, length in zip(ends, lengths, strict=True)),
        starts=np.array([0, *ends[:-1]], dtype=np.intp),
        segment_of=np.repeat(np.arange(len(segments), dtype=np.intp), lengths),
        segments_by_max=np.flatnonzero(kinds == "max"),
        segments_by_mean=np.flatnonzero(kinds == "mean"),
        scale=np.array([c.scale if c else 1.0 for c in calibrations]),
        bias=np.array([c.bias if c else 0.0 for c in calibrations]),
    )


def _scored(policy: Policy) -> tuple[Category, ...]:
    return tuple(category for category in policy.categories if category.mode != "off")


def _expanded(policy: Policy, text: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", text) for template in policy.templates)


def _vector(
    text: str, expanded: Sequence[str], embeddings: Mapping[str, NDArray[np.float32]]
) -> Float64s:
    rows = [_unit(text, embeddings[one].astype(np.float64)) for one in expanded]
    rounded: Float64s = np.rint(_unit(text, np.sum(rows, axis=0)) / PROMPT_GRID) * PROMPT_GRID
    return rounded


def _unit(text: str, vector: Float64s) -> Float64s:
    length = math.sqrt(math.fsum(np.square(vector)))
    if not (0 < length < math.inf):
        raise Misconfigured(f"the model has no direction for the prompt {text!r}; reword it")
    return vector / length


def _shares(segment: Sequence[Prompt]) -> Float64s:
    weights = np.array([prompt.weight for prompt in segment])
    return weights / math.fsum(weights)


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
