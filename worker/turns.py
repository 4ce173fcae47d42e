"""Answers to the records of one key come in the order of the records."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from worker.types import TopicPartition

Item = tuple[TopicPartition, bytes]


class Turns:
    """Work on the records of a key goes on side by side; only its results queue."""

    def __init__(self) -> None:
        self._last: dict[Item, asyncio.Future[None]] = {}

    @contextmanager
    def ticket(self, item: Item | None) -> Iterator[asyncio.Future[None] | None]:
        """Drawn in the order of the records; await what it gives before answering.

        The next one's turn comes when the context ends. Ends it with an error, so do all that
        wait behind it: their records are read again, in order. Without an item there is no
        order, and nothing to await.
        """
        if item is None:
            yield None
            return
        previous = self._last.get(item)
        mine = self._last[item] = asyncio.get_running_loop().create_future()
        try:
            yield previous
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(None)
        finally:
            if self._last.get(item) is mine:
                del self._last[item]

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """These partitions are no longer ours: should they come back, what is read then waits for
        nothing that was read before."""
        self._last = {item: turn for item, turn in self._last.items() if item[0] not in partitions}
