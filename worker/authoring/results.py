"""What fitting a category to labelled images came to: for the table, the report and the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Example, Floats, Labels
from worker.compiled import CompiledPolicy
from worker.policy import Calibration, Target


class Interval(NamedTuple):
    """An estimate, and the 95 % confidence interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ThresholdReport:
    """A threshold, and what reaches it among images that were held out of the fit.

    ``precision`` is at the stated prevalence; None where none was stated. ``refused`` says why a
    target was not solved, and ``value`` is then what stands in the file, or None.
    """

    action: Literal["review", "block"]
    value: float | None
    target: Target | None = None
    fpr: Interval | None = None
    recall: Interval | None = None
    precision: Interval | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How one category was fitted.

    ``places`` are those of the examples it was measured on: all that say something of it or, where
    there is a split, those for testing. ``margins``, ``labels``, ``weights``, ``folds`` and
    ``held_out`` (the probability by the other folds alone, at the stated prevalence or else at the
    data's own) are vectors as long. ``fitted_on`` has the numbers of images that show it and that
    do not. ``by_source``: whole sources were held out. ``refused`` says why the category could not
    be fitted; then there is no calibration and no estimate. ``warnings`` are sentences.
    """

    category: str
    places: NDArray[np.intp]
    labels: Labels
    weights: Floats
    margins: Floats
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    calibration: Calibration | None = None
    prevalence: float | None = None
    folds: NDArray[np.intp] = field(default_factory=lambda: np.array([], dtype=np.intp))
    held_out: Floats = field(default_factory=lambda: np.array([]))
    auroc: Interval | None = None
    average_precision: Interval | None = None
    ece: Interval | None = None
    thresholds: tuple[ThresholdReport, ...] = ()
    fitted_on: tuple[int, int] = (0, 0)
    by_source: bool = False

    @property
    def why_not_written(self) -> str | None:
        """Why the category stays as it was: it could not be fitted, or a target not be solved."""
        unsolved = [f"{of.action}: {of.refused}" for of in self.thresholds if of.refused]
        return self.refused or "; ".join(unsolved) or None

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def negatives(self) -> int:
        return len(self.labels) - self.positives


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A whole run of ``policy calibrate``. ``data`` is the digest of the labelled images;
    ``left_out`` has those that could not be examined, each with the reason; ``notes`` are
    sentences on the whole (such as that every class comes from a single source)."""

    compiled: CompiledPolicy
    examples: Sequence[Example]
    fits: Sequence[Fit]
    data: str
    left_out: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)  #: category ids by label
