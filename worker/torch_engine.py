"""An open_clip model's image tower, from pixels to unit rows, as torch runs it.

An engine turns a chunk of images into embeddings; ``onnx_engine`` and ``cuda_engine`` are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from worker.types import Float32Rows, Pixels, PreprocessSpec
from worker.uncompiled import open_clip

# More rows are hardly faster on a CPU, and each takes up to 10 MB of activations in each stream;
# other devices want more work.
_BATCH_ON_CPU: Final = 8
_BATCH_ELSEWHERE: Final = 64


class ImageEngine(Protocol):
    """Called from the encoder's streams, by several at once."""

    @property
    def name(self) -> str: ...

    @property
    def preferred_batch(self) -> int:
        """Rows in a call that it is fastest with, and the most that it is called with."""
        ...

    def __call__(self, pixels: Pixels) -> Float32Rows:
        """[n, height, width, 3] uint8 of the preprocessing's size to [n, dimension]; n above 0."""
        ...


class ImageTower(nn.Module):  # type: ignore[misc]
    """[n, height, width, 3] uint8 to unit rows [n, dimension] in float32; ``model`` is in
    evaluation mode, on its device and in its precision. Engines run this and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess_of(model)
        weights = next(model.visual.parameters())
        self._dtype = weights.dtype
        for name, values in (("mean", self.preprocess.mean), ("std", self.preprocess.std)):
            in_bytes = torch.tensor(values, device=weights.device).mul(255).view(1, 3, 1, 1)
            self.register_buffer(name, in_bytes, persistent=False)
        # convolutions run 3 times as fast on a CPU when channels come last, as pixels arrive
        model.visual.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)
        return normalize(self.model.encode_image(images.to(self._dtype)).float(), dim=-1)


class TorchEngine:
    """Any number of rows, on whatever device the tower is."""

    name: Final = "torch"

    def __init__(self, tower: ImageTower) -> None:
        self._tower = tower
        self._device = tower.mean.device
        self.preferred_batch = _BATCH_ON_CPU if self._device.type == "cpu" else _BATCH_ELSEWHERE

    def __call__(self, pixels: Pixels) -> Float32Rows:
        host = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # what torch can share
        with torch.inference_mode():
            rows: Float32Rows = self._tower(host.to(self._device)).cpu().numpy()
        return rows


def preprocess_of(model: nn.Module) -> PreprocessSpec:
    """What open_clip says of the pixels that ``model`` was trained on."""
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return PreprocessSpec(
        size=(int(height), int(width)),
        mean=_by_channel(config["mean"]),
        std=_by_channel(config["std"]),
        # as open_clip's own transform: whatever else is written means bicubic
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize_mode=config["resize_mode"],
        fill=config["fill_color"],
    )


def _by_channel(values: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return (float(values),) * 3
    red, green, blue = values
    return float(red), float(green), float(blue)
