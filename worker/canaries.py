"""Test images, on which one engine's embeddings are held against another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from worker.types import Float32Rows, Pixels


def canaries(height: int, width: int) -> Pixels:
    """A ramp, noise, stripes, a disc and a grey: [5, height, width, 3]."""
    down, across = np.mgrid[0:height, 0:width]
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    stripes = np.where((across // 8 % 2)[..., None], (220, 30, 40), (240, 240, 250))
    inside = (down - height / 2) ** 2 + (across - width / 2) ** 2 < (width / 3) ** 2
    disc = np.where(inside[..., None], (250, 200, 20), (20, 60, 160))
    grey = np.full((height, width, 3), 128)
    return np.stack([ramp, noise, stripes, disc, grey]).astype(np.uint8)


def worst_cosine(
    engine: Callable[[Pixels], Float32Rows],
    reference: Callable[[Pixels], Float32Rows],
    images: Pixels,
    batches: Iterable[int],
) -> float:
    """Between the two's unit rows, in batches of these sizes, that repeat the images as needed; not
    a number where one of the rows is none."""
    expected = np.concatenate([reference(images[[index]]) for index in range(len(images))])
    worst = 1.0
    for size in batches:
        # another one comes first in each
        taken = np.arange(size, 2 * size) % len(images)
        cosines = (engine(images[taken]).astype(np.float64) * expected[taken]).sum(axis=1)
        worst = float(np.minimum(worst, cosines.min()))  # which hands on what is not a number
    return worst
