"""Places for work, handed out by priority."""

from __future__ import annotations

import asyncio
from bisect import insort_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from worker.types import Load


@dataclass(frozen=True, slots=True, eq=False)
class _Asker:
    priority: int
    admitted: asyncio.Future[None]


class PrioritySlots:
    """At most ``capacity`` holders at once. Those who wait are admitted by priority, the lowest
    number first, and among equals in the order they came; whoever comes later overtakes nobody
    of the same priority. All from one event loop."""

    def __init__(self, capacity: int) -> None:
        """Raises ``ValueError`` where nobody could ever be admitted."""
        if capacity < 1:
            raise ValueError(f"a capacity of {capacity} admits nobody: give at least 1")
        self._capacity = capacity
        self._free = capacity
        self._waiting: list[_Asker] = []  # in the order they are to be admitted

    @property
    def load(self) -> Load:
        """From any thread."""
        return Load(self._capacity - self._free, self._capacity, len(self._waiting))

    @asynccontextmanager
    async def hold(self, priority: int = 0) -> AsyncIterator[None]:
        """Waits for a place, and gives it back in the end."""
        await self._admission(priority)
        try:
            yield
        finally:
            self._give_back()

    async def _admission(self, priority: int) -> None:
        asker = _Asker(priority, asyncio.get_running_loop().create_future())
        insort_right(self._waiting, asker, key=lambda waiting: waiting.priority)
        self._admit()
        try:
            await asker.admitted
        except asyncio.CancelledError:
            if not asker.admitted.cancelled():  # it gave up just after it had been admitted
                self._give_back()
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        self._waiting = [asker for asker in self._waiting if not asker.admitted.cancelled()]
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.pop(0).admitted.set_result(None)
