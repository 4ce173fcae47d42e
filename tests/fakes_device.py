"""A device that works by itself, as late as it may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import open_clip
import torch

from tests.unit.test_embed import TINY
from worker.torch_engine import ImageTower
from worker.types import Float32Rows, Pixels


class LateLane:
    """Copies the pixels when its rows are waited for and not before, and leaves nothing of a batch
    behind when the next one comes. ``run`` is the model; ``sizes`` says what it was given."""

    def __init__(self, run: Callable[[Pixels], Float32Rows], shape: tuple[int, int, int, int]):
        self.pixels = np.full(shape, 255, np.uint8)
        self.sizes: list[int] = []
        self._run = run
        self._started = 0
        self._rows = np.empty((0, 0), np.float32)

    def start(self, rows: int) -> None:
        assert not self._started, "two batches in one lane"
        self._started = rows
        self._rows[:] = np.nan

    def finish(self) -> Float32Rows:
        self.sizes.append(self._started)
        self._rows = self._run(self.pixels[: self._started].copy())
        self._started = 0
        return self._rows


def tiny_tower() -> ImageTower:
    """With random weights, for images of 32 pixels."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY).eval()
    config = {"size": 32, "mean": 0.5, "std": 0.25, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(
        model, {**config, "resize_mode": "shortest", "fill_color": 0}
    )
    return ImageTower(model)
