"""A worker that is measured, what it stands on, and when its answers came."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.e2e.scene import FAKE_WORKER, KAFKA, request, write_policy
from worker.bench.image_server import path
from worker.demo.show import POLICY
from worker.demo.stage import Exchange, Stage, create_topics, stage, worker_process
from worker.publish import KafkaPublisher
from worker.schema import DeadLetter, Verdict
from worker.types import Message

_SILENCE_SECONDS = 60.0  # without any answer; then the rest is lost

_COMMANDS = {"pocket": (sys.executable, "-m", "worker", "run"), "colours": FAKE_WORKER}

#: What sees the images: a model, or what takes next to no time.
ENCODERS = tuple(_COMMANDS)


@contextmanager
def service(encoder: str, *ports: int) -> Iterator[Stage]:
    """A worker on the defaults, which may fetch from these ports of loopback, with topics of its
    own, one for a backfill among them. Raises ``RuntimeError`` where it does not end well."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        policy = POLICY
        if encoder == "colours":
            policy = Path(folder) / "policy.yaml"
            write_policy(policy)
        with stage({}, policy, broker=KAFKA) as on:
            backfill = f"{on.topics.requests_topic}.backfill"
            on = replace(on, topics=on.topics.model_copy(update={"backfill_topic": backfill}))
            asyncio.run(create_topics(on.broker, on.topics))
            allowed = ",".join(f"127.0.0.1:{port}" for port in ports)
            settings = {"IMAGEWARDEN_FETCH__ALLOW": allowed}
            with worker_process(on, settings=settings, command=_COMMANDS[encoder]) as worker:
                try:
                    yield on
                except TimeoutError as silence:
                    raise worker.failed("no answer comes any more") from silence
                if code := worker.stop():
                    raise worker.failed(f"the worker ended with {code}")


def image_requests(port: int, numbers: Iterable[int]) -> dict[str, bytes]:
    """By name, one for each of these images."""
    names = {number: f"{port}/{number}" for number in numbers}
    return {
        name: request(name, f"http://127.0.0.1:{port}{path(number)}")
        for number, name in names.items()
    }


class Client:
    """Asks, and notes the first answer to each request and when it came (``time`` of the event
    loop). Use as ``async with``."""

    def __init__(self, on: Stage) -> None:
        self.topics = on.topics
        self.answers: dict[str, Verdict | DeadLetter] = {}
        self.answered_at: dict[str, float] = {}
        self._exchange = Exchange(on)
        self._publisher = KafkaPublisher(bootstrap=on.broker, client_id="bench")
        self._arrival = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._publisher.start()
        await self._exchange.__aenter__()
        self._collecting = asyncio.create_task(self._collect())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._collecting.cancel()
        await asyncio.wait({self._collecting})
        await self._exchange.__aexit__()
        await self._publisher.close()

    async def publish(self, topic: str, requests: Mapping[str, bytes]) -> None:
        """Returns once all are acknowledged."""
        await asyncio.gather(
            *(
                self._publisher.publish(Message(topic, name.encode(), value))
                for name, value in requests.items()
            )
        )

    async def until_answered(self, names: Iterable[str]) -> None:
        """Raises ``TimeoutError`` when nothing comes any more."""
        for name in names:
            while name not in self.answers:
                self._arrival.clear()
                async with asyncio.timeout(_SILENCE_SECONDS):
                    await self._arrival.wait()

    def all_ok(self, names: Iterable[str]) -> None:
        for name in names:
            answer = self.answers[name]
            assert isinstance(answer, Verdict) and answer.status == "ok", f"{name}: {answer}"

    async def _collect(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            name, answer = await self._exchange.answer()
            if name not in self.answers:  # a later one supersedes it
                self.answered_at[name] = clock()
                self.answers[name] = answer
            self._arrival.set()
