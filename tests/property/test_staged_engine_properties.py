"""Whatever batches come, from whatever threads: each has the rows that the model gives it alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_device import LateLane, tiny_tower
from worker.cuda_engine import cuda_engine
from worker.staged_engine import StagedEngine, batch_sizes, padded
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Pixels

MOST = 12


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return tiny_tower()


def batches_of(counts: list[int]) -> list[Pixels]:
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in counts]


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, MOST), max_size=10),
    sizes=st.sampled_from([[], batch_sizes(MOST), [MOST], [1, 3]]),
    lanes=st.integers(1, 3),
    threads=st.integers(1, 3),
)
def test_rows_are_those_of_the_model_alone(
    tower: ImageTower, counts: list[int], sizes: list[int], lanes: int, threads: int
) -> None:
    alone = TorchEngine(tower)
    on = [LateLane(alone, (MOST, 32, 32, 3)) for _ in range(lanes)]
    engine = StagedEngine(on, most=MOST, sizes=sizes)
    batches = batches_of(counts)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(engine, batches))
    for pixels, rows in zip(batches, found, strict=True):
        assert np.allclose(rows, alone(pixels), atol=1e-5)
    ran = sorted(size for lane in on for size in lane.sizes)
    assert ran == sorted(padded(count, sizes) for count in counts)


@settings(deadline=None, max_examples=20)
@given(counts=st.lists(st.integers(1, MOST), max_size=10), threads=st.integers(1, 3))
def test_the_lanes_of_a_device_give_the_rows_of_the_model_alone(
    tower: ImageTower, counts: list[int], threads: int
) -> None:
    alone = TorchEngine(tower)
    engine = cuda_engine(tower, most=MOST, lanes=2, graphs=None)
    batches = batches_of(counts)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(engine, batches))
    for pixels, rows in zip(batches, found, strict=True):
        assert np.allclose(rows, alone(pixels), atol=1e-5)


@given(most=st.integers(1, 300), rows=st.integers(1, 300))
def test_a_batch_is_made_longer_to_the_next_size_and_never_twice_as_long(
    most: int, rows: int
) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    longer = padded(rows, sizes)
    assert longer == (rows if rows > most else min(size for size in sizes if size >= rows))
    assert rows <= longer < 2 * rows or rows == longer == 1
