"""From threads to the event loop: what futures come to, all that there is in one hop.

Waking the loop is a write to a socket and a turn of its own, and the thread gives Python's lock
away over it. So a thread that tells more before the loop has looked does not wake it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Handover:
    """To the futures of ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._told: deque[tuple[asyncio.Future[Any], object]] = deque()
        self._woken = False

    def tell(self, future: asyncio.Future[Any], outcome: object) -> None:
        """From any thread: a result, or an exception to be raised. Of a future that is done, such
        as one whose asker gave up, nothing comes."""
        self._told.append((future, outcome))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._woken = False  # before looking: what is told from here on wakes the loop again
        while self._told:
            future, outcome = self._told.popleft()
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
