"""A policy as arrays, ready to score; what ``compile_policy`` makes and ``score`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.lists import Lists
from worker.policy import Category, Policy, Thresholds

Float64s = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_DIMENSION: Final = 2**13
VECTOR_GRID: Final = 2.0**-22


@dataclass(frozen=True, slots=True)
class Parts:
    """Where what a category's margin is made of stands; None for what it does without."""

    prompts: int | None  #: segment
    contrast: int | None  #: segment
    exceptions: range  #: places in ``Exceptions``
    head: int | None  #: column


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """The categories that have prompts, and what these count of their margin: all, or less beside
    a head."""

    categories: Indices
    prompts: Indices  #: segments
    contrasts: Indices  #: segments
    shares: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Headed:
    """The categories that have a head, in the order of the heads' columns, and what it counts."""

    categories: Indices
    shares: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Exceptions:
    """All exceptions, category by category."""

    segments: Indices
    contrasts: Indices  #: the segments that they are held against
    weights: Float64s
    categories: Indices  #: those that have any
    starts: Indices  #: the place of the first of each of these


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """A policy ready to score: its categories that are not off, in the order of the file.

    A segment is a list of texts that are aggregated: the prompts of a category, its contrasts, an
    exception. Columns are the segments' texts one after another, and then the heads; many share a
    text, and ``vectors`` holds each text once.
    """

    policy: Policy
    lists: Lists
    categories: tuple[Category, ...]
    parts: tuple[Parts, ...]  #: by category
    calibrated: tuple[bool, ...]  #: by category: whether its calibration fits its margins
    thresholds: Mapping[str | None, tuple[Thresholds, ...]]  #: by tenant, None for all others
    vectors: Float64s  #: [dimension, vectors], of length one, multiples of ``VECTOR_GRID``
    gains: Float64s  #: by vector: the factor on its product, the logit scale for a text
    offsets: Float64s  #: by vector: what is then added, 0 for a text
    texts: tuple[str, ...]  #: by column, of those that are texts
    vector_of: Indices  #: by column
    weights: Float64s  #: by column of a text; of one segment they sum to 1
    log_weights: Float64s  #: by column of a text
    columns: tuple[slice, ...]  #: by segment
    starts: Indices  #: by segment: its first column
    segment_of: Indices  #: by column of a text
    segments_by_max: Indices
    segments_by_mean: Indices
    prompted: Prompted
    headed: Headed
    exceptions: Exceptions
    at_least_frames: tuple[int, ...]  #: by category
    scale: Float64s  #: by category
    bias: Float64s  #: by category
    points: Mapping[int, tuple[Float64s, Float64s]]  #: of isotonic ones: margins, probabilities

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Ids of the categories without a calibration for the margins they have now."""
        pairs = zip(self.categories, self.calibrated, strict=True)
        return tuple(category.id for category, calibrated in pairs if not calibrated)
