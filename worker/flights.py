"""Single flight: what many ask for at the same moment is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    askers: int = 0


class Flights(Generic[K, V]):
    """Joins concurrent askers for a key to one running task.

    The task belongs to no asker: one that gives up (it was cancelled) takes nothing from the
    others. When the last one gives up, the task is cancelled: nothing is done for nobody. Failures
    reach every asker. Nothing is remembered once the task has ended.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    async def join(self, key: K, start: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, bool]:
        """The result for ``key``, and whether another asker's task gave it."""
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(start()))
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        flight.askers += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.askers -= 1
            if not flight.askers and not flight.task.done():
                self._forget(key, flight)  # at once: nobody may join what is being cancelled
                flight.task.cancel()

    def _landed(self, key: K, flight: _Flight[V]) -> None:
        self._forget(key, flight)
        if not flight.task.cancelled():
            flight.task.exception()  # marks it as seen: every asker may have given up

    def _forget(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def close(self) -> None:
        """Cancels what still runs."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
