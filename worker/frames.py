"""Which of an image's rows speaks for it; pure.

A row is one view of one frame. A frame's margin is the highest of its rows; an image's is the k-th
highest of its frames, where the category says that k of them must show it: by default the highest,
and of an image with fewer frames the lowest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]
Indices = NDArray[np.intp]


def deciding_rows(
    margins: Float64s, image_of: Indices, frame_of: Indices, at_least: int
) -> Indices:
    """[rows] margins of one category to [images]: the row that each image's margin is of.

    ``image_of`` ascends from 0 and leaves none out; ``frame_of`` numbers an image's frames from 0.
    """
    highest_first = np.lexsort((-margins, image_of))
    frames = (image_of * (1 + frame_of.max(initial=0)) + frame_of)[highest_first]
    _, first_of_frame = np.unique(frames, return_index=True)
    rows = highest_first[np.sort(first_of_frame)]
    starts = np.flatnonzero(np.diff(image_of[rows], prepend=-1))
    counts = np.diff(starts, append=len(rows))
    return rows[starts + np.minimum(at_least, counts) - 1]
