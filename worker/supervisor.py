"""Several worker processes, each started again when it dies, until all are told to stop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from worker.children import die_with_parent
from worker.supervised import Place, is_ready
from worker.telemetry import PROCESS_RESTARTS, PROCESSES

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2  # between looks at whether one that starts is ready

#: Exit codes, as the command line gives them.
_MISCONFIGURED = 2
_FAILED = 70


@dataclass(frozen=True, slots=True)
class Member:
    """A process to keep: its command, its whole environment, and the socket it serves its probes
    on."""

    command: Sequence[str]
    environment: Mapping[str, str]
    socket: Path


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before starting what died again: doubling with each death, until one was
    ready for ``forgiven_seconds``. One that ends with 70 ``failures`` times in a row, by itself or
    for the sake of the topic, would do so for ever."""

    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    forgiven_seconds: float = 60.0
    failures: int = 5

    def pause(self, deaths: int) -> float:
        """Seconds, after so many deaths in a row."""
        # the exponent is capped so that the power stays a number
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(deaths - 1, 30))


class Supervisor:
    """``run`` it on the main thread: the kernel ends the processes with the thread that started
    them. ``places`` may be read by any thread."""

    def __init__(self, members: Sequence[Member], patience: Patience | None = None) -> None:
        self._members = members
        self._patience = patience or Patience()
        self.places = [Place(number, member.socket) for number, member in enumerate(members)]
        for place in self.places:
            PROCESS_RESTARTS.labels(str(place.number))  # 0 is told, so that the first one is a rise
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._proven = asyncio.Event()

    async def run(self) -> int:
        """Until ``stop``, or until a restart would not help; the highest exit code.

        The first process goes ahead of the others: what is wrong with settings, policies or model
        is said once, and weights are fetched once.
        """
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(place)) for place in self.places]
        return max(each.result() for each in keeping)

    def stop(self) -> None:
        """Each finishes what it has in flight, and none is started again."""
        self._stopping.set()
        for process in self._running.values():
            _signal(process, signal.SIGTERM)

    def kill(self) -> None:
        for process in self._running.values():
            _signal(process, signal.SIGKILL)

    async def _keep(self, place: Place) -> int:
        if place.number > 0:
            await _first(self._stopping.wait(), self._proven.wait())
        deaths = 0
        while not self._stopping.is_set():
            code = await self._live(place)
            if self._stopping.is_set():
                return code
            deaths = 1 if self._forgiven(place) else deaths + 1
            if self._is_hopeless(code, deaths):
                _log.error("no restart mends this", process=place.number, exit_code=code)
                self.stop()
                return code
            pause = self._patience.pause(deaths)
            place.absent = f"ended with {code}, and starts again {pause:g} s later"
            _log.error("process_died", process=place.number, exit_code=code, again_in=pause)
            await _first(self._stopping.wait(), asyncio.sleep(pause))
            if not self._stopping.is_set():
                PROCESS_RESTARTS.labels(str(place.number)).inc()
        return 0

    async def _live(self, place: Place) -> int:
        """One process from beginning to end; its exit code, as a shell would say it."""
        member = self._members[place.number]
        member.socket.unlink(missing_ok=True)  # its predecessor's
        process = await asyncio.create_subprocess_exec(
            *member.command,
            env=member.environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us alone to pass on
            preexec_fn=die_with_parent(),
        )
        self._running[place.number] = process
        place.ready_at, place.started_at, place.absent = None, time.monotonic(), None
        PROCESSES.inc()
        looking = asyncio.create_task(self._look(place))
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
            looking.cancel()
            PROCESSES.dec()
            del self._running[place.number]
            place.absent = "ended"
        if self._stopping.is_set() and code == -signal.SIGTERM:
            return 0  # told to stop before it could listen: it had taken nothing
        return code if code >= 0 else 128 - code

    async def _look(self, place: Place) -> None:
        while True:
            if (await asyncio.to_thread(is_ready, place)).well:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        place.ready_at = time.monotonic()
        self._proven.set()

    def _forgiven(self, place: Place) -> bool:
        ready_at = place.ready_at
        return (
            ready_at is not None and time.monotonic() - ready_at >= self._patience.forgiven_seconds
        )

    def _is_hopeless(self, code: int, deaths: int) -> bool:
        """An edit that made a policy wrong stops no process that still has the last good one."""
        if code == _MISCONFIGURED:
            return not any(
                place.absent is None and place.ready_at is not None for place in self.places
            )
        return code == _FAILED and deaths >= self._patience.failures


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        process.send_signal(number)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns with the first of them."""
    tasks = [asyncio.create_task(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
