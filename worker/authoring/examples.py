"""Images of which somebody knows what they show: what calibrations and heads are fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.types import Embedding

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One labelled image.

    ``name`` is a path, a URL or an item id, for people; ``label`` as it was written. ``shows``
    holds, by category id, whether it shows that; for other categories ``otherwise`` holds, where
    None means that nobody said. ``source`` is where it comes from (images of one source resemble
    each other), ``split`` what its file says of it, ``thumbnail`` a small JPEG.
    """

    name: str
    label: str
    embedding: Embedding
    shows: Mapping[str, bool] = field(default_factory=dict)
    otherwise: bool | None = False
    weight: float = 1.0
    source: str | None = None
    split: str | None = None
    thumbnail: bytes | None = None
    greyscale: bool | None = None

    def says(self, category: str) -> bool | None:
        return self.shows.get(category, self.otherwise)


def known(examples: Sequence[Example], category: str) -> tuple[NDArray[np.intp], Labels, Floats]:
    """Of the examples that say something of the category: their places, whether they show it, and
    their weights."""
    said = [(i, e.says(category), e.weight) for i, e in enumerate(examples)]
    of = [(place, shows, weight) for place, shows, weight in said if shows is not None]
    return (
        np.array([place for place, _, _ in of], dtype=np.intp),
        np.array([shows for _, shows, _ in of], dtype=np.bool_),
        np.array([weight for _, _, weight in of], dtype=np.float64),
    )
