"""Batches on their way through a device that works by itself: while it runs one, the next one is
copied to it.

What is here knows nothing of the device; ``cuda_engine`` is that part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final, Protocol

from worker.types import Float32Rows, Pixels


class Lane(Protocol):
    """Memory for one batch on its way to the device and back."""

    @property
    def pixels(self) -> Pixels:
        """[most, height, width, 3], which the device copies from between ``start`` and
        ``finish``."""
        ...

    def start(self, rows: int) -> None:
        """Has the device copy the first ``rows`` of ``pixels``, run the model on them and copy the
        embeddings back, and returns at once. If it raises, ``pixels`` are read no more."""
        ...

    def finish(self) -> Float32Rows:
        """Waits for what was started: [rows, dimension], which the next ``start`` overwrites."""
        ...


class StagedEngine:
    """An ``ImageEngine`` for at most ``most`` rows in a call. Calls from several threads each have
    a lane, and wait while none is free.

    With ``sizes``, ascending, a batch is made as long as the next of them: the device has prepared
    for these. What the rows beyond are is whatever lay there, and theirs are dropped.
    """

    name: Final = "torch"

    def __init__(self, lanes: Sequence[Lane], *, most: int, sizes: Sequence[int] = ()) -> None:
        self.preferred_batch = most
        self._sizes = sizes
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def __call__(self, pixels: Pixels) -> Float32Rows:
        count = len(pixels)
        lane = self._free.get()
        try:
            lane.pixels[:count] = pixels
            lane.start(padded(count, self._sizes))
            return lane.finish()[:count].copy()
        finally:
            self._free.put(lane)


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4… and ``most``: no batch is made twice as long, and few have to be prepared."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


def padded(rows: int, sizes: Sequence[int]) -> int:
    """The least of ``sizes`` that holds so many rows; ``rows`` where none does."""
    index = bisect_left(sizes, rows)
    return sizes[index] if index < len(sizes) else rows
