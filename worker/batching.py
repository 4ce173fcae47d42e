"""Size-or-time batches. The clock of a batch starts at its first item.

While batches are being processed the next one forms, so under load batches are full and nobody
waits for the clock; at low load an item waits ``max_wait_seconds`` at the most. That may be 0: a
batch then leaves as soon as it can be processed, with what there is.
"""

from __future__ import annotations

import asyncio
from bisect import insort_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T, R]):
    item: T
    weight: int
    priority: int
    arrived: float
    answer: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Groups items of a weight (rows of pixels, say) and processes each group in one call.

    A batch weighs at most ``max_weight``, unless its only item is heavier. At most ``concurrency``
    calls run at once. ``process`` gives one result for each item, in their order; where that is an
    exception, it is raised to who submitted the item. A call that gives another number of results,
    or raises, fails each item of its batch.

    Among the items waiting, lower priorities go first, and equal ones in the order they came in.
    They are bounded by whoever submits them: each submission waits for its answer.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        max_weight: int,
        max_wait_seconds: float,
        concurrency: int = 1,
    ) -> None:
        self._process = process
        self._max_weight = max_weight
        self._max_wait = max_wait_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._waiting: list[_Entry[T, R]] = []  # in the order they are to be processed
        self._arrival = asyncio.Event()
        self._ended = False

    @property
    def waiting(self) -> int:
        """Items in no batch yet; from any thread."""
        return len(self._waiting)

    async def submit(self, item: T, *, weight: int = 1, priority: int = 0) -> R:
        """The item's result. Raises what is its result or what failed its batch, and
        ``CancelledError`` when ``run`` ends: nobody waits for what never comes."""
        loop = asyncio.get_running_loop()
        entry: _Entry[T, R] = _Entry(item, weight, priority, loop.time(), loop.create_future())
        if self._ended:
            entry.answer.cancel()
        else:
            insort_right(self._waiting, entry, key=lambda waiting: waiting.priority)
            self._arrival.set()
        return await entry.answer

    async def run(self) -> None:
        """Forms batches until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._slots.acquire()
                    batch = await self._next_batch()
                    group.create_task(self._answer(batch))
        finally:
            self.close()

    def close(self) -> None:
        """Cancels who waits for a batch; for when ``run`` was cancelled before it began."""
        self._ended = True
        for entry in self._waiting:
            entry.answer.cancel()

    async def _next_batch(self) -> list[_Entry[T, R]]:
        while not (batch := self._take_due()):
            self._arrival.clear()
            due_in = None
            if self._waiting:
                now = asyncio.get_running_loop().time()
                due_in = max(0.0, self._first_arrival() + self._max_wait - now)
            try:
                async with asyncio.timeout(due_in):
                    await self._arrival.wait()
            except TimeoutError:
                pass
        return batch

    def _first_arrival(self) -> float:
        return min(entry.arrived for entry in self._waiting)

    def _take_due(self) -> list[_Entry[T, R]]:
        """The next batch if it is full or one has waited long enough for it, else nothing."""
        self._waiting = [entry for entry in self._waiting if not entry.answer.cancelled()]
        if not self._waiting:
            return []
        size, weight = 0, 0
        for entry in self._waiting:
            if size and weight + entry.weight > self._max_weight:
                break
            size, weight = size + 1, weight + entry.weight
        full = size < len(self._waiting) or weight >= self._max_weight
        waited = asyncio.get_running_loop().time() - self._first_arrival()
        if not full and waited < self._max_wait:
            return []
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch

    async def _answer(self, batch: list[_Entry[T, R]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._process([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} gave {len(results)} results")
        except Exception as error:  # noqa: BLE001 - handed to each asker
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for entry in batch:
                entry.answer.cancel()
            raise
        finally:
            self._slots.release()
        for entry, result in zip(batch, results, strict=True):
            if entry.answer.done():  # its asker gave up
                continue
            if isinstance(result, Exception):
                entry.answer.set_exception(result)
            else:
                entry.answer.set_result(result)
