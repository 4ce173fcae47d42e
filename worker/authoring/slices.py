"""Where error rates differ: kinds of images on which a category errs more, or less, than on others.

Each slice is held against all other images by Fisher's exact test (Fisher 1922), and the p-values
of a whole run are corrected together by Holm's method (Holm 1979), so that among all differences
told of, none is noise in 95 of 100 runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy.stats import fisher_exact

from worker.authoring.examples import Example, Labels
from worker.authoring.rates import wilson
from worker.authoring.results import Interval

SMALLEST: Final = 20  #: images; slices with fewer are left out
SIGNIFICANT: Final = 0.05

_SIZES: Final = ((128, "under 128 px"), (256, "128 to 255 px"), (512, "256 to 511 px"))

Error = Literal["false alarms", "misses"]


@dataclass(frozen=True, slots=True)
class Slice:
    """A kind of images, and how many of them a category got wrong, beside all others that it could
    get wrong in the same way. ``p_value`` is corrected for all comparisons of the run."""

    category: str
    error: Error
    facet: str
    value: str
    wrong: int
    images: int
    others_wrong: int
    others: int
    p_value: float

    @property
    def rate(self) -> Interval:
        return wilson(self.wrong, self.images)

    @property
    def others_rate(self) -> Interval:
        return wilson(self.others_wrong, self.others)

    @property
    def differs(self) -> bool:
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True, slots=True, eq=False)
class Flagged:
    """What a category did at its lowest threshold: of each image its facets, whether it shows the
    category, and whether it was flagged."""

    category: str
    facets: Sequence[Mapping[str, str]]
    labels: Labels
    flagged: Labels


def slices(judged: Sequence[Flagged]) -> list[Slice]:
    """Of all categories, every slice large enough, the surest differences first."""
    found = [one for category in judged for one in _slices(category)]
    corrected = holm([one.p_value for one in found])
    final = [replace(one, p_value=p) for one, p in zip(found, corrected, strict=True)]
    return sorted(final, key=lambda one: one.p_value)


def facets(example: Example) -> Mapping[str, str]:
    """What is known of an image besides what it shows."""
    image = example.embedding.facts
    side = min(image.width, image.height)
    known = {
        "source": example.source,
        "shorter side": next((name for limit, name in _SIZES if side < limit), "512 px or more"),
        "format": image.media_type.removeprefix("image/"),
        "colour": {True: "greyscale", False: "colour", None: None}[example.greyscale],
    }
    return {facet: value for facet, value in known.items() if value}


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for being as many as they are, so that the chance of any below α by noise alone is
    at most α, whatever depends on what (Holm 1979, Scand. J. Statist. 6)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _slices(judged: Flagged) -> Iterator[Slice]:
    kinds: tuple[tuple[Error, Labels, Labels], ...] = (
        ("false alarms", ~judged.labels, judged.flagged),
        ("misses", judged.labels, ~judged.flagged),
    )
    for error, may_err, errs in kinds:
        for facet in sorted({name for known in judged.facets for name in known}):
            values = np.array([known.get(facet, "") for known in judged.facets], dtype=object)
            told = may_err & (values != "")
            found, counts = np.unique(values[told], return_counts=True)
            largest = told.sum() - SMALLEST
            large = [str(v) for v, n in zip(found, counts, strict=True) if SMALLEST <= n <= largest]
            # of two values, one against the other says it all
            for value in large[1:] if len(found) == 2 else large:
                inside = told & (values == value)
                outside = told & (values != value)
                wrong, others_wrong = int((inside & errs).sum()), int((outside & errs).sum())
                images, others = int(inside.sum()), int(outside.sum())
                table = [[wrong, images - wrong], [others_wrong, others - others_wrong]]
                p = float(fisher_exact(table).pvalue)
                yield Slice(
                    judged.category,
                    error,
                    facet,
                    value,
                    wrong,
                    images,
                    others_wrong,
                    others,
                    p,
                )
