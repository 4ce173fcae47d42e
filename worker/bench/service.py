"""A worker that is measured, what it stands on, and when its answers came.

Everything runs on this machine and shares its cores: broker, cache, image server, worker with its
decoders, and this client.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from worker.bench.image_server import image_server, path
from worker.demo.image_server import ImageServer
from worker.demo.stage import Stage, Worker, create_topics, own_names, starting_worker
from worker.embedded import embedded_broker, embedded_redis
from worker.publish import KafkaPublisher
from worker.schema import Verdict
from worker.settings import KafkaSettings
from worker.topics import TopicReader
from worker.types import Message, Record

WORKER = (sys.executable, "-m", "worker", "run")
NOOP_WORKER = (sys.executable, "-m", "worker.bench.noop_worker")

_SILENCE_SECONDS = 60.0  # without any verdict; then the rest is lost
_SIGNS = {"tansu": "broker", "valkey": "redis", "worker.bench.image_server": "image server"}

#: Between these shares of the verdicts the rate is steady: every stage has work from the first on,
#: and still has until the second.
STEADY = (0.2, 0.9)


@dataclass(frozen=True, slots=True)
class Flood:
    """What came of requests that wait on the topic when the worker starts. CPU times are of the
    steady part, by kind of process."""

    per_second: float
    core_ms: Mapping[str, float]
    resident_mib: Mapping[str, float]
    ready_seconds: float


@contextmanager
def standing(policy: Path, *, images: int = 100, kilobytes: int = 50) -> Iterator[Stage]:
    """Everything but the worker. The broker is the Kafka that ``KAFKA_BOOTSTRAP`` names, or an
    embedded one, which takes its time to hand a request on that comes alone."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        shared = os.environ.get("KAFKA_BOOTSTRAP")
        broker = shared or parts.enter_context(embedded_broker())
        topics = own_names() if shared else KafkaSettings()
        asyncio.run(create_topics(broker, topics))
        server = ImageServer({})
        server.port = parts.enter_context(image_server(images, kilobytes=kilobytes))
        yield Stage(broker, parts.enter_context(embedded_redis()), server, policy, folder, topics)


@contextmanager
def workers(
    on: Stage, command: Sequence[str], environment: Mapping[str, str], count: int = 1
) -> Iterator[list[Worker]]:
    """Started, and stopped in good order. Raises ``RuntimeError`` where one does not end well."""
    own = {**environment, **on.environment()}
    with ExitStack() as parts:
        started = [
            parts.enter_context(starting_worker(on, settings=own, command=command))
            for _ in range(count)
        ]
        try:
            yield started
        except TimeoutError as silence:
            raise started[0].failed("no answer comes any more") from silence
        for worker in started:
            if code := worker.stop():
                raise worker.failed(f"a worker ended with {code}")


def requests(on: Stage, images: Iterable[int], start: int = 0) -> dict[str, bytes]:
    """By name, one for each of these images."""
    return {
        f"{number}": json.dumps(
            {
                "schema_version": 1,
                "request_id": f"{number}",
                "item_id": f"{number}",
                "url": on.images.url(path(image)),
            }
        ).encode()
        for number, image in enumerate(images, start)
    }


class Client:
    """Asks, and notes each verdict and when it came; reads them only later, so as to take little
    of the cores. Use as ``async with``."""

    def __init__(self, on: Stage) -> None:
        self.answers: list[tuple[float, Record]] = []
        self._on = on
        self._arrival = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            broker, topics = self._on.broker, self._on.topics
            self._publisher = KafkaPublisher(bootstrap=broker, client_id="bench")
            parts.push_async_callback(self._publisher.close)
            await self._publisher.start()
            reader = TopicReader(bootstrap=broker, topic=topics.verdicts_topic, client_id="bench")
            records = await (await parts.enter_async_context(reader)).follow()

            async def collect() -> None:
                async for record in records:
                    self.answers.append((time.perf_counter(), record))
                    self._arrival.set()

            collecting = asyncio.create_task(collect())

            async def stop() -> None:
                collecting.cancel()
                await asyncio.wait({collecting})

            parts.push_async_callback(stop)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def publish(self, asked: Mapping[str, bytes]) -> None:
        """Returns once all are acknowledged."""
        topic = self._on.topics.requests_topic
        messages = [Message(topic, name.encode(), value) for name, value in asked.items()]
        await asyncio.gather(*map(self._publisher.publish, messages))

    async def until(self, count: int) -> None:
        """Until so many verdicts came in all. Raises ``TimeoutError`` when nothing comes."""
        while len(self.answers) < count:
            self._arrival.clear()
            async with asyncio.timeout(_SILENCE_SECONDS):
                await self._arrival.wait()

    def arrivals(self, asked: Iterable[str]) -> dict[str, float]:
        """When the verdict on each of the requests came. Raises ``RuntimeError`` unless each has
        one verdict, and an image was examined for it."""
        found: dict[str, float] = {}
        for at, record in self.answers:
            verdict = Verdict.model_validate_json(record.value or b"")
            if verdict.status != "ok":
                raise RuntimeError(f"{verdict.request_id} was not examined: {verdict.error}")
            if verdict.request_id in found:
                raise RuntimeError(f"{verdict.request_id} was answered twice")
            found[verdict.request_id] = at
        return {name: found[name] for name in asked}


def flood(
    on: Stage,
    images: Sequence[int],
    *,
    environment: Mapping[str, str],
    command: Sequence[str] = WORKER,
    processes: int = 1,
) -> Flood:
    """As fast as it goes. Raises ``RuntimeError`` where a verdict is missing or wrong."""
    return asyncio.run(_flood(on, images, environment, command, processes))


async def _flood(
    on: Stage,
    images: Sequence[int],
    environment: Mapping[str, str],
    command: Sequence[str],
    processes: int,
) -> Flood:
    asked = requests(on, images)
    async with Client(on) as client:
        await client.publish(asked)
        began = time.perf_counter()
        with workers(on, command, environment, processes) as started:
            for worker in started:
                await asyncio.to_thread(worker.wait_until_ready)
            ready = time.perf_counter() - began
            kinds = _kinds(started)
            marks = []
            for share in STEADY:
                await client.until(round(len(asked) * share))
                marks.append((time.perf_counter(), len(client.answers), _cpu_seconds(kinds)))
            resident = {
                kind: sum(process.memory_info().rss for process in kinds[kind]) / 2**20
                for kind in ("worker", "decoders")
            }
            await client.until(len(asked))
        client.arrivals(asked)
    (first_at, first, before), (last_at, last, after) = marks
    return Flood(
        per_second=(last - first) / (last_at - first_at),
        core_ms={kind: 1000 * (after[kind] - before[kind]) / (last - first) for kind in kinds},
        resident_mib=resident,
        ready_seconds=ready,
    )


def _kinds(started: Sequence[Worker]) -> dict[str, list[psutil.Process]]:
    own = [psutil.Process(worker.process.pid) for worker in started]
    kinds = {
        "worker": own,
        "decoders": [child for process in own for child in process.children()],
        "client": [psutil.Process()],
    }
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            kinds |= {kind: [process] for sign, kind in _SIGNS.items() if sign in command}
    return kinds


def _cpu_seconds(kinds: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    return {kind: sum(sum(process.cpu_times()[:2]) for process in of) for kind, of in kinds.items()}
