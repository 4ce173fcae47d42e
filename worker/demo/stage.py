"""What the demo stands on: broker, cache, image server and a worker, all on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx

from worker.children import die_with_parent
from worker.demo.image_server import ImageServer, Reply, serving
from worker.embedded import embedded_broker, embedded_redis
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher
from worker.schema import DEAD_LETTER_HEADER, DeadLetter, Verdict
from worker.settings import KafkaSettings
from worker.topics import TopicReader, ensure_topics
from worker.types import Message, Record

_PARTITIONS = 4
_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """The addresses of what runs, and the policy file that decides."""

    broker: str
    redis: str
    images: ImageServer
    policy: Path
    folder: Path
    topics: KafkaSettings = field(default_factory=KafkaSettings)
    """For the names in it alone: of topics and group."""

    def environment(self) -> dict[str, str]:
        """Settings of a worker, or of any other command, on this stage."""
        return {
            "IMAGEWARDEN_POLICIES": str(self.policy),
            "IMAGEWARDEN_KAFKA__BOOTSTRAP": self.broker,
            "IMAGEWARDEN_KAFKA__SESSION_TIMEOUT_SECONDS": "6",
            "IMAGEWARDEN_REDIS__URL": self.redis,
            "IMAGEWARDEN_CACHE__URL_KEY": "a secret of this demonstration",
            "IMAGEWARDEN_FETCH__ALLOW": f"127.0.0.1:{self.images.port}",
            "IMAGEWARDEN_HTTP__PORT": "0",
            "IMAGEWARDEN_KAFKA__GROUP": self.topics.group,
            **{
                f"IMAGEWARDEN_KAFKA__{key.upper()}": name
                for key, name in _by_setting(self.topics).items()
            },
        }


@contextmanager
def stage(
    replies: Mapping[str, Reply], policy: Path, *, broker: str | None = None
) -> Iterator[Stage]:
    """Everything but the worker; gone when the context ends. ``policy`` is copied, to be edited.

    ``broker`` is a Kafka shared with others, as ``host:port,host:port``: topics and group have
    names of their own there, and the topics stay. Without it there is an embedded one.

    Raises ``Misconfigured`` where a wheel is missing.
    """
    if not policy.is_file():
        raise Misconfigured(f"{policy} is not here; run this in a clone of the repository")
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="imagewarden-")))
        topics = own_names() if broker else KafkaSettings()
        broker = broker or parts.enter_context(embedded_broker())
        asyncio.run(create_topics(broker, topics))
        yield Stage(
            broker=broker,
            redis=parts.enter_context(embedded_redis()),
            images=parts.enter_context(serving(replies)),
            policy=Path(shutil.copy(policy, folder)),
            folder=folder,
            topics=topics,
        )


async def create_topics(broker: str, topics: KafkaSettings) -> None:
    """All that a worker with these settings reads and writes."""
    await ensure_topics(broker, dict.fromkeys(_by_setting(topics).values(), _PARTITIONS))


def own_names() -> KafkaSettings:
    """Of topics and group, for a Kafka that others use as well."""
    mark = uuid.uuid4().hex[:12]
    topics = {key: f"{name}.{mark}" for key, name in _by_setting(KafkaSettings()).items()}
    return KafkaSettings.model_validate({"group": f"imagewarden.{mark}", **topics})


def _by_setting(topics: KafkaSettings) -> dict[str, str]:
    return {key: name for key, name in topics if key.endswith("_topic") and name}


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process and its log file, one JSON object a line."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self, event: str) -> Iterator[dict[str, Any]]:
        """What it logged under that name so far."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and (told := json.loads(line))["event"] == event:
                yield told

    def address(self) -> str | None:
        """Where its metrics and probes are served, once they are."""
        return next((told["address"] for told in self.lines("serving")), None)

    def metrics(self) -> str:
        return httpx.get(f"http://{self.address()}/metrics").text

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not any(self.lines("ready")):
            if self.process.poll() is not None:
                raise self.failed(f"the worker ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"the worker was not ready within {_READY_SECONDS:.0f} s")
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=_STOP_SECONDS)

    def failed(self, what: str) -> RuntimeError:
        tail = "\n".join(self.log.read_text().splitlines()[-20:])
        return RuntimeError(f"{what}; the end of its log:\n{tail}")


@contextmanager
def worker_process(
    on: Stage,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    command: Sequence[str] = (sys.executable, "-m", "worker", "run"),
) -> Iterator[Worker]:
    """A worker in a process of its own, ready; killed at the end if it still runs.

    ``settings`` are further environment variables. Raises ``RuntimeError`` with the end of its
    log where it does not get ready.
    """
    with starting_worker(on, settings=settings, command=command) as worker:
        worker.wait_until_ready()
        yield worker


@contextmanager
def starting_worker(
    on: Stage,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    command: Sequence[str] = (sys.executable, "-m", "worker", "run"),
) -> Iterator[Worker]:
    """The same, not waited for. Enter it on a thread that lives as long as the worker."""
    with ExitStack() as parts:
        descriptor, log = tempfile.mkstemp(".log", "worker-", on.folder)
        output = parts.enter_context(os.fdopen(descriptor, "wb"))
        environment = {
            **{name: value for name, value in os.environ.items() if "IMAGEWARDEN" not in name},
            **on.environment(),
            **settings,
        }
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,  # a Ctrl-C meant for us must not be its first signal
            preexec_fn=die_with_parent(),
        )
        parts.callback(process.wait)
        parts.callback(process.kill)
        yield Worker(process, Path(log))


class Exchange:
    """Publishes records to the request topic and collects what comes of each.

    Use as ``async with Exchange(on) as exchange``. A record's key names it, so that a dead
    letter, which keeps the key, can be told; a verdict is told by its request id, so give both the
    same name.
    """

    def __init__(self, on: Stage) -> None:
        self._broker = on.broker
        self._topics = on.topics

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            self._publisher = KafkaPublisher(bootstrap=self._broker, client_id="exchange")
            parts.push_async_callback(self._publisher.close)
            await self._publisher.start()
            self._answers: asyncio.Queue[Record] = asyncio.Queue(maxsize=100)
            for topic in (self._topics.verdicts_topic, self._topics.dead_letters_topic):
                reader = TopicReader(bootstrap=self._broker, topic=topic, client_id="exchange")
                records = await (await parts.enter_async_context(reader)).follow()
                reading = asyncio.create_task(self._collect(records))
                parts.push_async_callback(_cancelled, reading)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def _collect(self, records: AsyncIterator[Record]) -> None:
        async for record in records:
            await self._answers.put(record)

    async def publish(self, records: Mapping[str, bytes]) -> None:
        """Returns once all are acknowledged."""
        await asyncio.gather(
            *(
                self._publisher.publish(Message(self._topics.requests_topic, name.encode(), value))
                for name, value in records.items()
            )
        )

    async def answer(self) -> tuple[str, Verdict | DeadLetter]:
        """The next thing that came of a record, with the record's name."""
        return _answer(await self._answers.get())


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _answer(record: Record) -> tuple[str, Verdict | DeadLetter]:
    if (why := dict(record.headers).get(DEAD_LETTER_HEADER)) is not None:
        return (record.key or b"").decode(), DeadLetter.model_validate_json(why)
    verdict = Verdict.model_validate_json(record.value or b"")
    return verdict.request_id, verdict
