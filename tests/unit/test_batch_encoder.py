"""What is left of a batch with a bad image in it, and of one that the device has no memory for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.fakes import COLOURS, FakeEncoder
from worker.batch_encoder import BatchEncoder
from worker.errors import DeviceOutOfMemory, ErrorCode, Stage, Unexaminable
from worker.telemetry import REGISTRY
from worker.types import Float32Rows, Pixels

Answer = Float32Rows | BaseException


class Fragile(FakeEncoder):
    """Has memory for ``fitting`` rows, and fails where ``refuses`` says so of a row."""

    def __init__(
        self,
        *,
        fitting: int = 1000,
        refuses: Callable[[Pixels], bool] = lambda row: False,
    ) -> None:
        super().__init__()
        self.fitting = fitting
        self.refuses = refuses

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        self.images.append(len(pixels))
        if len(pixels) > self.fitting:
            raise DeviceOutOfMemory(f"no memory for {len(pixels)} rows")
        if any(map(self.refuses, pixels)):
            raise ZeroDivisionError("the model divides by the picture")
        return self._of_colours(pixels.mean(axis=(1, 2), dtype=np.float64))


def picture(colour: str, rows: int = 1) -> Pixels:
    return np.full((rows, 8, 8, 3), COLOURS[colour], np.uint8)


def is_green(row: Pixels) -> bool:
    return bool((row == COLOURS["green"]).all())


def expected(pixels: Pixels) -> bytes:
    return FakeEncoder().encode_images(pixels).tobytes()


@asynccontextmanager
async def running(encoder: FakeEncoder, rows: int = 64) -> AsyncIterator[BatchEncoder]:
    batches = BatchEncoder(encoder, batch_rows=rows, batch_wait_seconds=0, concurrency=1)
    task = asyncio.create_task(batches.run())
    try:
        yield batches
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def together(batches: BatchEncoder, images: Sequence[Pixels]) -> list[Answer]:
    return await asyncio.gather(*map(batches.encode, images), return_exceptions=True)


def splits(cause: str) -> float:
    return REGISTRY.get_sample_value("imagewarden_batches_split_total", {"cause": cause}) or 0


# ---------------------------------------------------------------- an image that fails


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
async def test_image_the_model_fails_on_is_refused_alone_wherever_it_stands(size: int) -> None:
    for culprit in range(size):
        images = [picture("green" if index == culprit else "red", 2) for index in range(size)]
        async with running(Fragile(refuses=is_green)) as batches:
            answers = await together(batches, images)
        for index, answer in enumerate(answers):
            if index == culprit:
                assert isinstance(answer, Unexaminable)
                assert (answer.code, answer.stage) == (ErrorCode.EMBED_FAILED, Stage.EMBED)
                assert not answer.retryable
            else:
                assert isinstance(answer, np.ndarray)
                assert answer.tobytes() == expected(images[index])


async def test_every_image_of_a_batch_may_be_a_bad_one() -> None:
    async with running(Fragile(refuses=is_green)) as batches:
        answers = await together(batches, [picture("green")] * 5)
    assert [type(answer) for answer in answers] == [Unexaminable] * 5


async def test_culprit_among_many_is_found_in_as_many_halvings_as_it_takes() -> None:
    encoder = Fragile(refuses=is_green)
    before = splits("failed")
    async with running(encoder) as batches:
        await together(batches, [picture("red")] * 63 + [picture("green")])
    assert splits("failed") == before + 6
    assert encoder.images == [64, 32, 32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1, 1]  # the last one: blank


async def test_model_that_fails_on_a_blank_image_too_is_broken_and_says_so_to_all() -> None:
    async with running(Fragile(refuses=lambda row: True)) as batches:
        answers = await together(batches, [picture("red"), picture("blue")])
    assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2


async def test_batch_after_one_that_failed_is_not_split() -> None:
    encoder = Fragile(refuses=is_green)
    async with running(encoder) as batches:
        await together(batches, [picture("red"), picture("green")])
        encoder.images.clear()
        await together(batches, [picture("red")] * 4)
    assert encoder.images == [4]


async def test_encoder_that_drops_the_rows_of_an_image_is_not_believed_for_the_others() -> None:
    class Dropping(FakeEncoder):
        def encode_images(self, pixels: Pixels) -> Float32Rows:
            return super().encode_images(pixels[[not is_green(row) for row in pixels]])

    images = [picture("red"), picture("green"), picture("blue")]
    async with running(Dropping()) as batches:
        red, green, blue = await together(batches, images)
    assert isinstance(red, np.ndarray)
    assert red.tobytes() == expected(images[0])
    assert isinstance(green, Unexaminable)
    assert isinstance(blue, np.ndarray)
    assert blue.tobytes() == expected(images[2])


# ---------------------------------------------------------------- a device without memory


async def test_batch_too_large_for_the_device_goes_through_in_halves() -> None:
    encoder = Fragile(fitting=3)
    before = splits("oom")
    images = [picture("red"), picture("blue"), picture("green", 2), picture("white", 4)]
    async with running(encoder, rows=8) as batches:
        answers = await together(batches, images)
    assert encoder.images == [8, 4, 2, 2, 2, 2]
    assert splits("oom") == before + 2
    for image, answer in zip(images, answers, strict=True):
        assert isinstance(answer, np.ndarray)
        assert answer.tobytes() == expected(image)


async def test_size_that_fitted_is_remembered() -> None:
    encoder = Fragile(fitting=4)
    async with running(encoder, rows=16) as batches:
        await together(batches, [picture("red")] * 16)
        encoder.images.clear()
        await together(batches, [picture("red")] * 10)
    assert encoder.images == [4, 4, 2]
    assert REGISTRY.get_sample_value("imagewarden_batch_max_rows") == 4


async def test_larger_size_is_tried_again_when_a_smaller_one_has_fitted_for_long() -> None:
    encoder = Fragile(fitting=2)
    async with running(encoder, rows=8) as batches:
        await together(batches, [picture("red")] * 8)
        encoder.fitting = 1000
        for _ in range(300):
            await together(batches, [picture("red")] * 8)
    assert encoder.images[-1] == 8
    assert 4 in encoder.images[2:]
    assert encoder.images.index(4, 2) > 250


async def test_image_of_more_rows_than_fit_is_embedded_in_pieces() -> None:
    image = np.concatenate([picture(colour) for colour in ("red", "blue", "white", "black")])
    async with running(Fragile(fitting=1)) as batches:
        rows = await batches.encode(image)
    assert rows.tobytes() == expected(image)


async def test_image_whose_single_row_does_not_fit_is_refused_for_now() -> None:
    encoder = Fragile(fitting=0)
    async with running(encoder) as batches:
        answers = await together(batches, [picture("red"), picture("blue", 3)])
        for answer in answers:
            assert isinstance(answer, Unexaminable)
            assert (answer.code, answer.retryable) == (ErrorCode.EMBED_FAILED, True)
        encoder.fitting = 1
        assert isinstance(await batches.encode(picture("red")), np.ndarray)


async def test_bad_image_is_found_although_memory_is_short() -> None:
    images = [picture("red", 3), picture("green"), picture("blue", 3)]
    async with running(Fragile(fitting=2, refuses=is_green)) as batches:
        red, green, blue = await together(batches, images)
    assert isinstance(green, Unexaminable)
    assert not green.retryable
    for image, answer in ((images[0], red), (images[2], blue)):
        assert isinstance(answer, np.ndarray)
        assert answer.tobytes() == expected(image)


async def test_what_was_split_is_in_the_log() -> None:
    with capture_logs() as logs:
        async with running(Fragile(fitting=1, refuses=is_green)) as batches:
            await together(batches, [picture("green"), picture("red")])
    assert [log["event"] for log in logs] == ["device_out_of_memory", "image_failed_in_the_model"]
