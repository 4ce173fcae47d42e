"""What a GPU's engine does where there is no GPU: torch's own stand-ins for streams and events do
nothing, everything else is as there, and graphs cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from tests.fakes_device import tiny_tower
from tests.unit.test_embed import noise
from worker.canaries import canaries, worst_cosine
from worker.cuda_engine import Recorded, Recorder, cuda_engine
from worker.embed import OpenClipEncoder, Streams
from worker.errors import DeviceOutOfMemory
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Float32Rows, Pixels

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records graphs")


@pytest.fixture
def tower() -> ImageTower:
    return tiny_tower()


@needs_no_gpu
def test_where_graphs_cannot_be_made_rows_come_without_them_and_a_warning(
    tower: ImageTower,
) -> None:
    with capture_logs() as logs:
        engine = cuda_engine(tower, most=4, lanes=2)
    [warning] = logs
    assert warning["event"] == "cuda_graphs_failed_so_kernels_are_launched_one_by_one"
    assert warning["log_level"] == "warning"
    assert np.allclose(engine(noise(3)), TorchEngine(tower)(noise(3)), atol=1e-5)


def recorder(change: Callable[[Tensor], Tensor] = lambda rows: rows) -> Recorder:
    """As graphs are: what is recorded reads where the pixels were then, and leaves its rows where
    they were then, in memory that the others write as well."""
    shared = torch.empty(100)

    def record(run: Callable[[], Tensor], stream: object) -> Recorded:
        rows = shared[: run().numel()].view(-1, 24)

        def replay() -> None:
            shared[:] = torch.nan
            rows.copy_(change(run()))

        return replay, rows

    return record


def test_rows_of_graphs_are_those_without(tower: ImageTower) -> None:
    with capture_logs() as logs:
        engine = cuda_engine(tower, most=4, lanes=2, graphs=recorder)
    assert not logs
    for count in (1, 3, 4, 2, 1):
        assert np.allclose(engine(noise(count)), TorchEngine(tower)(noise(count)), atol=1e-5)


def no_memory() -> Recorder:
    raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        (no_memory, "no memory"),
        (lambda: recorder(lambda rows: -rows), "cosine -"),
        (lambda: recorder(lambda rows: rows * torch.nan), "cosine nan"),
    ],
)
def test_graphs_that_fail_or_give_other_rows_are_done_without(
    tower: ImageTower, graphs: Callable[[], Recorder], reason: str
) -> None:
    with capture_logs() as logs:
        engine = cuda_engine(tower, most=4, lanes=2, graphs=graphs)
    [warning] = logs
    assert warning["event"] == "cuda_graphs_failed_so_kernels_are_launched_one_by_one"
    assert reason in warning["reason"]
    assert np.allclose(engine(noise(3)), TorchEngine(tower)(noise(3)), atol=1e-5)


def test_memory_that_cannot_be_given_back_after_a_failed_recording_stops_nothing(
    tower: ImageTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    engine = cuda_engine(tower, most=4, lanes=2, graphs=no_memory)
    assert np.allclose(engine(noise(3)), TorchEngine(tower)(noise(3)), atol=1e-5)


def test_batches_are_as_long_as_was_asked_for(tower: ImageTower) -> None:
    assert cuda_engine(tower, most=6, lanes=1, graphs=None).preferred_batch == 6


class Full:
    """A tower whose device has no memory while ``full``."""

    full = False

    def __init__(self, tower: ImageTower) -> None:
        self.tower, self.preprocess, self.mean = tower, tower.preprocess, tower.mean

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.full:
            raise torch.OutOfMemoryError("no memory")
        rows: Tensor = self.tower(pixels)
        return rows


def test_a_batch_that_does_not_fit_leaves_its_lane_to_the_next(tower: ImageTower) -> None:
    tight = Full(tower)
    engine = cuda_engine(tight, most=4, lanes=1, graphs=None)  # type: ignore[arg-type]
    for _ in range(2):
        tight.full = True
        with pytest.raises(torch.OutOfMemoryError):
            engine(noise(4))
        tight.full = False
        assert np.allclose(engine(noise(2)), TorchEngine(tower)(noise(2)), atol=1e-5)


def test_an_encoder_cuts_what_is_more_than_a_batch_and_says_when_memory_runs_out(
    tower: ImageTower,
) -> None:
    tight = Full(tower)
    encoder = OpenClipEncoder(
        "tiny",
        tower.model,
        partial(open_clip.tokenize, context_length=16),
        cuda_engine(tight, most=4, lanes=2, graphs=recorder),  # type: ignore[arg-type]
        weights_digest="sha256:" + "0" * 64,
        precision="fp32",
        streams=Streams(2, 2),
    )
    alone = TorchEngine(tower)(noise(11))
    assert np.allclose(encoder.encode_images(noise(11)), alone, atol=1e-5)
    tight.full = True
    with pytest.raises(DeviceOutOfMemory, match="no memory for 11 rows"):
        encoder.encode_images(noise(11))
    tight.full = False
    assert np.allclose(encoder.encode_images(noise(11)), alone, atol=1e-5)


@pytest.mark.parametrize("wrong", [0, 3, 6])
def test_one_wrong_row_in_one_batch_is_seen(tower: ImageTower, wrong: int) -> None:
    alone = TorchEngine(tower)

    def engine(pixels: Pixels) -> Float32Rows:
        rows = alone(pixels)
        if len(rows) == 7:
            rows[wrong] = -rows[wrong]
        return rows

    images = canaries(32, 32)
    assert worst_cosine(engine, alone, images, [1, 2, 4]) > 0.99999
    assert worst_cosine(engine, alone, images, [1, 7, 2]) < 0


def test_a_row_that_is_not_a_number_is_seen(tower: ImageTower) -> None:
    alone = TorchEngine(tower)
    found = worst_cosine(lambda pixels: alone(pixels) * np.nan, alone, canaries(32, 32), [1, 2])
    assert not found >= 0.9
