"""Size-or-time batches. The clock of a batch starts at its first item.

While a batch is being processed the next one forms, so under load batches are full and nobody
waits for the clock; at low load an item waits ``max_wait_seconds`` at the most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T, R]):
    item: T
    weight: int
    arrived: float
    answer: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Groups items of a weight (rows of pixels, say) and processes each group in one call.

    A batch weighs at most ``max_weight``, unless its only item is heavier. At most ``concurrency``
    calls run at once. ``process`` gives one result for each item, in their order; a call that
    gives another number, or raises, fails each item of its batch.

    The items waiting are bounded by whoever submits them: each submission waits for its answer.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_weight: int,
        max_wait_seconds: float,
        concurrency: int = 1,
    ) -> None:
        self._process = process
        self._max_weight = max_weight
        self._max_wait = max_wait_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._waiting: deque[_Entry[T, R]] = deque()
        self._arrival = asyncio.Event()

    async def submit(self, item: T, *, weight: int = 1) -> R:
        loop = asyncio.get_running_loop()
        entry: _Entry[T, R] = _Entry(item, weight, loop.time(), loop.create_future())
        self._waiting.append(entry)
        self._arrival.set()
        return await entry.answer

    async def run(self) -> None:
        """Forms batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._slots.acquire()
                batch = await self._next_batch()
                group.create_task(self._answer(batch))

    async def _next_batch(self) -> list[_Entry[T, R]]:
        while not (batch := self._take_due()):
            self._arrival.clear()
            due_in = None
            if self._waiting:
                now = asyncio.get_running_loop().time()
                due_in = max(0.0, self._waiting[0].arrived + self._max_wait - now)
            try:
                async with asyncio.timeout(due_in):
                    await self._arrival.wait()
            except TimeoutError:
                pass
        return batch

    def _take_due(self) -> list[_Entry[T, R]]:
        """The next batch if it is full or its first item has waited long enough, else nothing."""
        while self._waiting and self._waiting[0].answer.cancelled():
            self._waiting.popleft()
        if not self._waiting:
            return []
        size, weight = 0, 0
        for entry in self._waiting:
            if size and weight + entry.weight > self._max_weight:
                break
            size, weight = size + 1, weight + entry.weight
        full = size < len(self._waiting) or weight >= self._max_weight
        waited = asyncio.get_running_loop().time() - self._waiting[0].arrived
        if not full and waited < self._max_wait:
            return []
        return [self._waiting.popleft() for _ in range(size)]

    async def _answer(self, batch: list[_Entry[T, R]]) -> None:
        try:
            results = await self._process([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} gave {len(results)} results")
        except Exception as error:  # noqa: BLE001 - handed to each asker
            for entry in batch:
                if not entry.answer.done():
                    entry.answer.set_exception(error)
            return
        finally:
            self._slots.release()
        for entry, result in zip(batch, results, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(result)
