from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from worker.batching import Batcher


class Model:
    """Records its batches; holds each until it is let go, when told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0
        self.most_running = 0

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.gate.wait()
        self.running -= 1
        return [item * 10 for item in items]


@asynccontextmanager
async def running(batcher: Batcher[int, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_full_batch_leaves_without_waiting_for_the_clock() -> None:
    model = Model()
    batcher = Batcher(model, max_weight=3, max_wait_seconds=3600)
    async with running(batcher):
        assert await asyncio.gather(*map(batcher.submit, (1, 2, 3))) == [10, 20, 30]
    assert model.batches == [[1, 2, 3]]


async def test_lone_item_leaves_when_its_time_is_up() -> None:
    batcher = Batcher(Model(), max_weight=100, max_wait_seconds=0.01)
    async with running(batcher):
        assert await batcher.submit(7) == 70


async def test_batch_forms_while_another_is_processed() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model, max_weight=2, max_wait_seconds=0)
    async with running(batcher):
        first = asyncio.create_task(batcher.submit(1))
        while not model.batches:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(batcher.submit(item)) for item in (2, 3, 4)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *rest)
    assert model.batches == [[1], [2, 3], [4]]


async def test_no_more_batches_run_at_once_than_allowed() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model, max_weight=1, max_wait_seconds=0, concurrency=2)
    async with running(batcher):
        tasks = [asyncio.create_task(batcher.submit(item)) for item in range(5)]
        while model.running < 2:
            await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)
    assert model.most_running == 2


async def test_batch_is_filled_by_weight() -> None:
    model = Model()
    batcher = Batcher(model, max_weight=8, max_wait_seconds=0.01)
    async with running(batcher):
        await asyncio.gather(
            batcher.submit(1, weight=5), batcher.submit(2, weight=3), batcher.submit(3, weight=1)
        )
    assert model.batches == [[1, 2], [3]]


async def test_item_heavier_than_a_batch_goes_alone() -> None:
    model = Model()
    batcher = Batcher(model, max_weight=4, max_wait_seconds=0)
    async with running(batcher):
        await asyncio.gather(batcher.submit(1), batcher.submit(2, weight=9), batcher.submit(3))
    assert model.batches == [[1], [2], [3]]


async def test_item_whose_asker_gave_up_is_not_processed() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model, max_weight=1, max_wait_seconds=0)
    async with running(batcher):
        first = asyncio.create_task(batcher.submit(1))
        while not model.batches:
            await asyncio.sleep(0)
        second, third = (asyncio.create_task(batcher.submit(item)) for item in (2, 3))
        await asyncio.sleep(0)
        second.cancel()
        model.gate.set()
        assert await asyncio.gather(first, third) == [10, 30]
    assert model.batches == [[1], [3]]


async def test_failure_reaches_each_item_of_its_batch_and_no_other() -> None:
    async def fragile(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise ZeroDivisionError("bad batch")
        return list(items)

    batcher = Batcher(fragile, max_weight=2, max_wait_seconds=0)
    async with running(batcher):
        answers = await asyncio.gather(*map(batcher.submit, (1, 2, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ZeroDivisionError, ZeroDivisionError, int]


async def test_failure_among_the_results_reaches_its_own_asker_alone() -> None:
    async def picky(items: Sequence[int]) -> list[int | Exception]:
        return [ZeroDivisionError("bad item") if item == 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(picky, max_weight=3, max_wait_seconds=0)
    async with running(batcher):
        answers = await asyncio.gather(*map(batcher.submit, (1, 2, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, ZeroDivisionError, int]


async def test_lower_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model, max_weight=2, max_wait_seconds=0)
    async with running(batcher):
        first = asyncio.create_task(batcher.submit(1))
        while not model.batches:
            await asyncio.sleep(0)
        rest = []
        for item, priority in [(2, 2), (3, 0), (4, 1), (5, 0), (6, 2)]:
            rest.append(asyncio.create_task(batcher.submit(item, priority=priority)))
            await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *rest)
    assert model.batches == [[1], [3, 5], [4, 2], [6]]


async def test_item_whose_asker_gave_up_behind_others_is_not_processed() -> None:
    model = Model()
    batcher = Batcher(model, max_weight=3, max_wait_seconds=3600)
    async with running(batcher):
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.gather(tasks[0], batcher.submit(3), batcher.submit(4))
    assert model.batches == [[1, 3, 4]]


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_nobody_waits_for_what_ended(concurrency: int) -> None:
    model = Model()
    model.gate.clear()
    batcher = Batcher(model, max_weight=1, max_wait_seconds=0, concurrency=concurrency)
    async with running(batcher):
        waiting = [asyncio.create_task(batcher.submit(item)) for item in range(4)]
        while len(model.batches) < concurrency:
            await asyncio.sleep(0)
    late = asyncio.create_task(batcher.submit(5))
    async with asyncio.timeout(10):
        await asyncio.wait([*waiting, late])
    assert all(task.cancelled() for task in [*waiting, late])


async def test_wrong_number_of_results_is_an_error_not_a_mix_up() -> None:
    async def lossy(items: Sequence[int]) -> list[int]:
        return list(items)[:-1]

    batcher = Batcher(lossy, max_weight=2, max_wait_seconds=0)
    async with running(batcher):
        with pytest.raises(RuntimeError, match="a batch of 1 gave 0 results"):
            await batcher.submit(1)
