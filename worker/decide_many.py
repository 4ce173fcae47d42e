"""``decide`` for many images at once, as the past is decided on again; pure.

The same arithmetic on the same bits, so the answers are equal to those of ``decide``, without what
a verdict tells besides: a matrix product for all rows, and a comparison with thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.compiled import CompiledPolicy, Float64s, Indices
from worker.policy import Decision
from worker.score import margins_of_images, probabilities, score
from worker.types import Float16Rows

Codes = NDArray[np.int8]  #: places in ``ACTIONS``

ACTIONS: Final = (Decision.ALLOW, Decision.REVIEW, Decision.BLOCK)
"""By severity."""
NOBODY: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class DecidedMany:
    """By image and category, [images, categories], the action and the probability; by image the
    decision, and the place of the category that asked for it, or ``NOBODY``."""

    actions: Codes
    probabilities: Float64s
    decisions: Codes
    decided_by: Indices


def decide_many(
    compiled: CompiledPolicy,
    rows: Float16Rows,
    starts: Indices,
    tenants: Sequence[str | None],
    frames: Indices | None = None,
) -> DecidedMany:
    """Decide on images by their rows, [n, dimension] one image after another.

    ``starts`` has each image's first row, ascending from 0; ``tenants`` one for each image;
    ``frames`` the frame of each row, None for one each. Raises ``ValueError`` as ``decide`` does.
    """
    return decide_by(compiled, probabilities_of(compiled, rows, starts, frames), tenants)


def probabilities_of(
    compiled: CompiledPolicy, rows: Float16Rows, starts: Indices, frames: Indices | None = None
) -> Float64s:
    """[images, categories], by the rows as ``decide_many`` takes them."""
    if np.any(np.diff(starts, append=len(rows)) <= 0):
        raise ValueError("an image without rows was not examined; there is nothing to decide on")
    if frames is None:
        frames = np.arange(len(rows))
    margins = score(compiled, rows).margins
    return probabilities(compiled, margins_of_images(compiled, margins, starts, frames))


def decide_by(
    compiled: CompiledPolicy, found: Float64s, tenants: Sequence[str | None]
) -> DecidedMany:
    """Decide by probabilities, [images, categories], which several tenants may share."""
    names = list(compiled.thresholds)
    place = {name: number for number, name in enumerate(names)}
    others = place[None]
    tenant_of = np.fromiter((place.get(tenant, others) for tenant in tenants), np.intp)
    held = [compiled.thresholds[name] for name in names]
    review = _or_never([[one.review for one in thresholds] for thresholds in held])
    block = _or_never([[one.block for one in thresholds] for thresholds in held])
    actions = np.add(found >= review[tenant_of], 0, dtype=np.int8)
    actions[found >= block[tenant_of]] = ACTIONS.index(Decision.BLOCK)

    enforced = np.array([category.mode == "enforce" for category in compiled.categories])
    asked = np.where(enforced, actions, np.int8(0))
    decisions = asked.max(axis=1, initial=0)
    first = np.where(asked == decisions[:, None], found, -1.0).argmax(axis=1)
    return DecidedMany(actions, found, decisions, np.where(decisions > 0, first, NOBODY))


def _or_never(thresholds: list[list[float | None]]) -> Float64s:
    return np.array([[np.inf if each is None else each for each in row] for row in thresholds])
