"""Small, deterministic stand-ins at the seams, held to the same contracts as the real parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worker.types import DeviceMemory, Float32Rows, ModelInfo, Pixels, PreprocessSpec, digest_of

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


class FakeEncoder:
    """Sees the mean colour of an image, and understands the colours' names.

    A text that names one of ``COLOURS`` gets the embedding of an image of that colour, so a policy
    that prompts for "red" against "blue" finds red images; any other text gets a direction of its
    own. The same input gives the same bits in any batch. ``texts`` and ``images`` record what was
    asked: one tuple of strings a call, one number of rows a call.
    """

    def __init__(
        self, dimension: int = 32, *, name: str = "fake", logit_scale: float = 20.0
    ) -> None:
        self._info = ModelInfo(
            name=name,
            weights_digest=digest_of(["fake encoder", dimension]),
            preprocess=PreprocessSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            precision="float32",
            dimension=dimension,
            logit_scale=logit_scale,
        )
        self._projection = np.random.default_rng(7).standard_normal((4, dimension))
        self.texts: list[tuple[str, ...]] = []
        self.images: list[int] = []
        self.memory: DeviceMemory | None = None  #: what it says of its device's

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def engine(self) -> str:
        return "fake"

    @property
    def preferred_batch(self) -> int:
        return 8

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        self.images.append(len(pixels))
        return self._of_colours(pixels.mean(axis=(1, 2), dtype=np.float64))

    def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        self.texts.append(tuple(texts))
        rows = np.empty((len(texts), self._info.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            named = [COLOURS[word] for word in text.lower().split() if word in COLOURS]
            row[:] = (self._of_colours(np.array(named[:1])) if named else self._of_text(text))[0]
        return rows

    def device_memory(self) -> DeviceMemory | None:
        return self.memory

    def _of_colours(self, colours: NDArray[np.float64]) -> Float32Rows:
        """[n, 3] colours in 0..255 to [n, dimension]."""
        signed = colours / 127.5 - 1.0
        features = np.concatenate([signed, np.full((len(signed), 1), 0.5)], axis=1)
        # a sum and no matrix product, whose last bits would depend on the size of the batch
        return _unit((features[:, :, None] * self._projection).sum(axis=1))

    def _of_text(self, text: str) -> Float32Rows:
        """[1, dimension]"""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        return _unit(np.random.default_rng(seed).standard_normal((1, self._info.dimension)))


def _unit(rows: NDArray[np.float64]) -> Float32Rows:
    unit: Float32Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
