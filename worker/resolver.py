"""Names to addresses, by the system's resolver, on threads of its own.

A stranger chooses the name server, and so how long a look-up takes: half a minute is usual where
nothing answers, and a thread cannot be interrupted. On asyncio's own threads such look-ups would
hold up whatever else runs there.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from worker.flights import Flights


def look_up(name: str) -> list[str]:
    """The literal addresses of ``name``, without repeats. Blocking. Raises ``socket.gaierror``."""
    infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class SystemResolver:
    """An ``egress.Resolver``: at most ``threads`` look-ups at once, and one of each name.

    Further ones wait, and nothing is left of them when their askers give up. What has been looked
    up is not kept: the system's resolver says neither for how long it holds nor whether it is from
    a cache.
    """

    def __init__(
        self, *, threads: int = 32, look_up: Callable[[str], Sequence[str]] = look_up
    ) -> None:
        self._look_up = look_up
        self._threads = asyncio.Semaphore(threads)
        self._flights: Flights[str, Sequence[str]] = Flights()

    async def __call__(self, name: str) -> Sequence[str]:
        addresses, _ = await self._flights.join(name, lambda: self._ask(name))
        return addresses

    async def close(self) -> None:
        await self._flights.close()

    async def _ask(self, name: str) -> Sequence[str]:
        await self._threads.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def deliver(outcome: Sequence[str] | Exception) -> None:
            self._threads.release()
            if answer.done():  # its askers have given up
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        def ask() -> None:
            outcome: Sequence[str] | Exception
            try:
                outcome = self._look_up(name)
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                outcome = error
            with suppress(RuntimeError):  # the loop is closed: the process is about to end
                loop.call_soon_threadsafe(deliver, outcome)

        # A daemon, so that a look-up without answer does not hold up the end of the process
        threading.Thread(target=ask, name=f"resolve-{name}", daemon=True).start()
        return await answer
