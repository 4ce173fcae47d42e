"""The page that ``policy calibrate --report`` writes: how well a policy's categories do, and where
they fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from markupsafe import Markup

from worker.authoring import diagrams
from worker.authoring.html import render
from worker.authoring.mistakes import Mistakes, lowest_threshold, mistakes
from worker.authoring.quantities import percent
from worker.authoring.results import Calibrated, Fit
from worker.authoring.slices import SIGNIFICANT, SMALLEST, Flagged, Slice, facets, slices

_MOST_THUMBNAILS: Final = 24  # of a category
_THUMBNAILS: Final = 720  # of a page, about 4 KB each
_FEWEST_THUMBNAILS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """One category, ready for the page; ``charts`` and ``wrong`` are empty where it was not
    fitted."""

    fit: Fit
    anchor: str
    charts: Sequence[tuple[str, str, Markup]] = ()  #: heading, what to look for, chart
    wrong: Mistakes | None = None
    compared: Sequence[Slice] = ()

    @property
    def rates(self) -> tuple[float, float, float | None]:
        """False-positive rate, recall and precision at the lowest threshold."""
        assert self.wrong
        return diagrams.rates(self.fit, self.wrong.threshold)

    @property
    def differing(self) -> list[Slice]:
        return [one for one in self.compared if one.differs]


def calibration_page(calibrated: Calibrated, on: date) -> str:
    """The whole page as HTML."""
    fitted = [fit for fit in calibrated.fits if fit.refused is None]
    described = [facets(example) for example in calibrated.examples]
    compared = slices([_flagged(fit, described) for fit in fitted])
    most = max(_FEWEST_THUMBNAILS, min(_MOST_THUMBNAILS, _THUMBNAILS // max(1, len(fitted))))
    sections = [
        _section(calibrated, fit, f"category-{place}", compared, most // 2)
        for place, fit in enumerate(calibrated.fits)
    ]
    return render(
        "calibration.html.j2",
        calibrated=calibrated,
        policy=calibrated.compiled.policy,
        sections=sections,
        on=on,
        comparisons=len(compared),
        smallest=SMALLEST,
        significant=SIGNIFICANT,
    )


def _section(
    calibrated: Calibrated, fit: Fit, anchor: str, compared: Sequence[Slice], most: int
) -> Section:
    if fit.refused is not None:
        return Section(fit, anchor)
    return Section(
        fit,
        anchor,
        _charts(fit),
        mistakes(calibrated, fit, most),
        [one for one in compared if one.category == fit.category],
    )


def _charts(fit: Fit) -> list[tuple[str, str, Markup]]:
    stated = fit.prevalence is not None
    live = f" Weighted as if {percent(fit.prevalence)} showed it." if stated else ""
    return [
        (
            "Reliability",
            "On the dashed line probabilities mean what they say; below it they promise too much."
            + live,
            diagrams.reliability(fit),
        ),
        (
            "Probabilities",
            "The less the two kinds overlap, the better: what is up and left of a threshold is "
            "missed, what is down and right of it is a false alarm.",
            diagrams.histogram(fit),
        ),
        (
            "ROC",
            "The share found, by the share of all others flagged with it. Up and to the left is "
            "better.",
            diagrams.roc(fit),
        ),
        (
            "Precision and recall",
            "How many of those flagged do show it, by the share found. Up and to the right is "
            "better." + live,
            diagrams.precision_recall(fit),
        ),
    ]


def _flagged(fit: Fit, described: Sequence[Mapping[str, str]]) -> Flagged:
    threshold = lowest_threshold(fit)
    return Flagged(
        fit.category,
        [described[place] for place in fit.places],
        fit.labels,
        fit.held_out >= (0.5 if threshold is None else threshold),
    )
