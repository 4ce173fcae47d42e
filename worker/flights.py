"""Single flight: what many ask for at the same moment is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """Joins concurrent askers for a key to one running task.

    The task belongs to no asker: one that gives up (its deadline passed) takes nothing from the
    others. Failures reach every asker. Nothing is remembered once the task has ended.
    """

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def join(self, key: K, start: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, bool]:
        """The result for ``key``, and whether another asker's task gave it."""
        task = self._tasks.get(key)
        joined = task is not None
        if task is None:
            task = self._tasks[key] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task), joined

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # marks it as seen: every asker may have given up

    async def close(self) -> None:
        """Cancels what still runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
