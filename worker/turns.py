"""Answers to the records of one key come in the order of the records."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Turns:
    """Work on the records of a key goes on side by side; only its results queue."""

    def __init__(self) -> None:
        self._last: dict[Hashable, asyncio.Future[None]] = {}

    @contextmanager
    def ticket(self, key: Hashable | None) -> Iterator[asyncio.Future[None] | None]:
        """Drawn in the order of the records; await what it gives before answering.

        The next one's turn comes when the context ends. Ends it with an error, so do all that
        wait behind it: their records are read again, in order. Without a key there is no order,
        and nothing to await.
        """
        if key is None:
            yield None
            return
        previous = self._last.get(key)
        mine = self._last[key] = asyncio.get_running_loop().create_future()
        try:
            yield previous
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(None)
        finally:
            if self._last.get(key) is mine:
                del self._last[key]
