"""Who works beside others, and who must be alone: a lock with many sharers or one holder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Solitude:
    """One who wants to be alone waits until all sharers have left; meanwhile none enters."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._sharers = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._turn:
            self._sharers += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._sharers -= 1
            if not self._sharers:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._turn:
            await self._empty.wait()
            yield
