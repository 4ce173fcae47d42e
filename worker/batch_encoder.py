"""Images to embeddings in batches, where one bad image or a full device spoils nothing else.

A batch that fails is halved until the culprit is alone. One that does not fit into the device's
memory goes through in pieces.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import structlog

from worker import telemetry
from worker.batching import Batcher
from worker.errors import DeviceOutOfMemory, ErrorCode, Stage, Unexaminable
from worker.seams import Encoder
from worker.types import Float32Rows, Load, Pixels

_log = structlog.get_logger(__name__)

#: So many full pieces must fit in a row before twice as many rows are tried again: what filled the
#: device may have gone, and a failed try costs about as much as one piece.
_PIECES_UNTIL_LARGER = 256

_WAITED = telemetry.STAGE_WAIT_SECONDS.labels(Stage.EMBED.value)
_WORKED = telemetry.STAGE_SECONDS.labels(Stage.EMBED.value)


class _Image(NamedTuple):
    pixels: Pixels
    asked: float  #: when, by the performance counter


class BatchEncoder:
    """Gathers images of up to ``batch_rows`` rows into batches, each waiting for others no longer
    than ``batch_wait_seconds``, and encodes ``concurrency`` batches at once on threads."""

    def __init__(
        self, encoder: Encoder, *, batch_rows: int, batch_wait_seconds: float, concurrency: int
    ) -> None:
        self._encoder = encoder
        self._blank = np.zeros((1, *encoder.info.preprocess.size, 3), np.uint8)
        self._fitting = _FittingRows()
        # A thread for each batch in flight: the model never waits for the next one to be formed
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="encode")
        self._batch_rows = batch_rows
        self._concurrency = concurrency
        self._in_flight = 0
        self._busy_until = 0.0  # counted so far, while a batch is in flight
        self._batcher: Batcher[_Image, Float32Rows] = Batcher(
            self._on_a_thread,
            max_weight=batch_rows,
            max_wait_seconds=batch_wait_seconds,
            concurrency=concurrency,
        )

    async def run(self) -> None:
        """Encodes batches until cancelled."""
        try:
            await self._batcher.run()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def encode(self, pixels: Pixels, *, priority: int = 0) -> Float32Rows:
        """``[rows, height, width, 3]`` of one image to ``[rows, dimension]``.

        Raises ``Unexaminable`` where it fails alone, although the model is well; retryable if the
        device has no memory for it. What else it raises says that the model is broken.
        """
        image = _Image(pixels, time.perf_counter())
        return await self._batcher.submit(image, weight=len(pixels), priority=priority)

    @property
    def load(self) -> Load:
        """Batches in flight, and images that are in none; from any thread."""
        return Load(self._in_flight, self._concurrency, self._batcher.waiting)

    async def _on_a_thread(self, images: Sequence[_Image]) -> Sequence[Float32Rows | Exception]:
        begun = time.perf_counter()
        rows = 0
        for pixels, asked in images:
            rows += len(pixels)
            _WAITED.observe(begun - asked)
        telemetry.BATCH_FILL.observe(rows / self._batch_rows)
        self._count_busy(begun)
        self._in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._each, [image.pixels for image in images]
            )
        finally:
            ended = time.perf_counter()
            self._count_busy(ended)
            self._in_flight -= 1
            for _ in images:
                _WORKED.observe(ended - begun)

    def _count_busy(self, now: float) -> None:
        """Time with a batch in flight counts once, however many there are."""
        if self._in_flight:
            telemetry.MODEL_BUSY_SECONDS.inc(now - self._busy_until)
        self._busy_until = now

    def _each(self, images: Sequence[Pixels]) -> list[Float32Rows | Exception]:
        """Rows of each image, or why there are none."""
        try:
            rows = self._rows(np.concatenate(images))
        except Exception as error:  # noqa: BLE001 - whose fault it is comes out image by image
            if len(images) == 1:
                return [self._refusal(error)]
        else:
            return list(np.split(rows, np.cumsum([len(pixels) for pixels in images])[:-1]))
        # Not before the error is gone: its traceback holds what the batch took of the memory
        telemetry.BATCHES_SPLIT.labels("failed").inc()
        half = len(images) // 2
        return [*self._each(images[:half]), *self._each(images[half:])]

    def _rows(self, pixels: Pixels) -> Float32Rows:
        """In as many pieces as the device's memory asks for."""
        done: list[Float32Rows] = []
        start = 0
        while start < len(pixels):
            piece = pixels[start : start + self._fitting.rows]
            try:
                rows = self._encoder.encode_images(piece)
            except DeviceOutOfMemory:
                if len(piece) == 1:
                    raise
                self._fitting.too_many(len(piece))
                continue
            if len(rows) != len(piece):
                raise RuntimeError(f"the encoder gave {len(rows)} rows for {len(piece)}")
            self._fitting.fitted(len(piece))
            telemetry.BATCH_ROWS.observe(len(piece))
            done.append(rows)
            start += len(piece)
        return np.concatenate(done)

    def _refusal(self, error: Exception) -> Unexaminable:
        """Of an image that failed alone. Raises what a blank image fails with, if it does."""
        if isinstance(error, DeviceOutOfMemory):
            detail = f"the model's device has no memory for one row of it ({error})"
            return Unexaminable(ErrorCode.EMBED_FAILED, Stage.EMBED, detail, retryable=True)
        self._rows(self._blank)
        _log.warning("image_failed_in_the_model", error=repr(error))
        detail = f"the model fails on this image, and on no other ({type(error).__name__})"
        return Unexaminable(ErrorCode.EMBED_FAILED, Stage.EMBED, detail)


class _FittingRows:
    """How many rows the device has memory for. Called from any threads; a count that two of them
    lose between them delays the next try by one."""

    def __init__(self) -> None:
        self.rows = sys.maxsize
        self._pieces = 0  # of just so many rows that fitted

    def too_many(self, rows: int) -> None:
        telemetry.BATCHES_SPLIT.labels("oom").inc()
        self._set(min(self.rows, rows // 2))
        _log.warning("device_out_of_memory", rows=rows, next_rows=self.rows)

    def fitted(self, rows: int) -> None:
        if rows == self.rows:
            self._pieces += 1
            if self._pieces == _PIECES_UNTIL_LARGER:
                self._set(2 * rows)

    def _set(self, rows: int) -> None:
        self.rows = rows
        self._pieces = 0
        telemetry.BATCH_MAX_ROWS.set(rows)
