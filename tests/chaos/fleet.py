"""The workers: slots in which one process follows another."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack

import psutil

from tests.chaos.checks import Exit
from worker.demo.stage import Stage, Worker, starting_worker

_READY_SECONDS = 120.0  # it takes 3 s, with a model 10; this is for a machine under load
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.1

KILLED = -signal.SIGKILL


class Slot:
    """One worker at a time, under a name and a transactional id that stay.

    ``lock`` is held by whoever does something to it; whoever finds that it ended by itself starts
    it again. From one thread, that lives as long as the workers.
    """

    def __init__(
        self, name: str, on: Stage, command: tuple[str, ...], settings: Mapping[str, str]
    ) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.exits: list[Exit] = []
        self.started = 0
        self._on = on
        self._command = command
        self._settings = settings
        self._parts = ExitStack()
        self.worker: Worker | None = None

    def start(self) -> None:
        self.started += 1
        settings = {
            **self._settings,
            "IMAGEWARDEN_WORKER": f"{self.name}.{self.started}",
            "IMAGEWARDEN_KAFKA__TRANSACTIONAL_ID": f"{self._on.topics.group}.{self.name}",
        }
        process = starting_worker(self._on, settings=settings, command=self._command)
        self.worker = self._parts.enter_context(process)

    async def ready(self) -> Worker:
        """The worker, once it reads the topic."""
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            assert self.worker is not None
            self.restart_if_ended()
            if any(self.worker.lines("ready")):
                return self.worker
            if time.monotonic() > deadline:
                raise self.worker.failed(f"{self.name} was not ready within {_READY_SECONDS:g} s")
            await asyncio.sleep(_LOOK_SECONDS)

    def restart_if_ended(self) -> None:
        """Nobody told it to."""
        if self.worker is not None and self.worker.process.poll() is not None:
            self._ended("by itself", None)
            self.start()

    async def kill(self) -> None:
        worker = await self.ready()
        worker.process.kill()
        await asyncio.to_thread(worker.process.wait)
        self._ended("killed", KILLED)

    async def leave(self) -> None:
        """SIGTERM, and it ends in good order."""
        worker = await self.ready()
        worker.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        while worker.process.poll() is None:
            if time.monotonic() > deadline:
                raise worker.failed(f"{self.name} did not stop within {_STOP_SECONDS:g} s")
            await asyncio.sleep(_LOOK_SECONDS)
        self._ended("told to stop", 0)

    async def freeze(self, seconds: float) -> None:
        worker = await self.ready()
        worker.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.process.send_signal(signal.SIGCONT)

    async def kill_decoder(self) -> None:
        worker = await self.ready()
        [child, *_] = psutil.Process(worker.process.pid).children()
        child.kill()

    def close(self) -> None:
        """Killed, where it still runs."""
        self._parts.close()

    def _ended(self, how: str, expected: int | None) -> None:
        assert self.worker is not None
        code = self.worker.process.returncode
        self.exits.append(
            Exit(f"{self.name}.{self.started} ({self.worker.log.name})", how, expected, code)
        )
        self._parts.close()
        self.worker = None
