"""Each image gets its own rows or its own refusal, whatever else goes wrong in its batch."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeEncoder
from worker.batch_encoder import BatchEncoder
from worker.errors import DeviceOutOfMemory, Unexaminable
from worker.types import Float32Rows, Pixels

BAD = 7  #: the brightness of a row that the model fails on


class Fragile(FakeEncoder):
    """Has memory for ``fitting`` rows."""

    def __init__(self, fitting: int) -> None:
        super().__init__()
        self.fitting = fitting

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        if len(pixels) > self.fitting:
            raise DeviceOutOfMemory("no memory")
        if (pixels == BAD).any():
            raise ZeroDivisionError
        return super().encode_images(pixels)


@given(
    images=st.lists(
        st.lists(st.sampled_from([0, BAD, 100, 255]), min_size=1, max_size=4), max_size=12
    ),
    fitting=st.integers(0, 20),
    batch_rows=st.integers(1, 16),
)
async def test_each_image_gets_its_own_rows_or_its_own_refusal(
    images: list[list[int]], fitting: int, batch_rows: int
) -> None:
    batches = BatchEncoder(
        Fragile(fitting), batch_rows=batch_rows, batch_wait_seconds=0, concurrency=2
    )
    pixels = [
        np.broadcast_to(np.array(rows, np.uint8)[:, None, None, None], (len(rows), 8, 8, 3))
        for rows in images
    ]
    task = asyncio.create_task(batches.run())
    answers = await asyncio.gather(*map(batches.encode, pixels), return_exceptions=True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for rows, image, answer in zip(images, pixels, answers, strict=True):
        if fitting == 0 or BAD in rows:
            assert isinstance(answer, Unexaminable)
            assert answer.retryable == (fitting == 0)
        else:
            assert isinstance(answer, np.ndarray)
            assert answer.tobytes() == FakeEncoder().encode_images(image).tobytes()
