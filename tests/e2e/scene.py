"""What end-to-end tests are made of: pictures, requests, workers, and waiting for answers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from kafka import KafkaAdminClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import REPOSITORY
from tests.policy_factory import category, policy_bytes
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, Worker, starting_worker, worker_process
from worker.schema import DeadLetter, Verdict
from worker.topics import TopicReader
from worker.types import Record

#: Where it is set, the Kafka that tests share; else each has an embedded broker of its own.
KAFKA = os.environ.get("KAFKA_BOOTSTRAP")

PATIENCE_SECONDS = 60.0  # what takes longer never comes

_COMMAND_SECONDS = 150.0  # loading a model takes 6 s, on a busy machine many times that

FAKE_WORKER = (sys.executable, "-m", "tests.e2e.fake_worker")
_FAKE_WORKER_SETTINGS = {
    "PYTHONPATH": str(REPOSITORY),
    # The embedded broker lets a member join after half of it
    "IMAGEWARDEN_KAFKA__SESSION_TIMEOUT_SECONDS": "3",
    "IMAGEWARDEN_DECODE__PROCESSES": "1",
}

_OTHERS = ["white", "black"]
#: Red is blocked, green is reviewed, everything else is allowed.
RED_AND_GREEN = (
    category("red", contrast=["green", "blue", *_OTHERS], block=0.9, block_uncalibrated=True),
    category("green", prompts=["green"], contrast=["red", "blue", *_OTHERS]),
)


def write_policy(path: Path, *categories: Mapping[str, Any], **keys: Any) -> None:
    """All at once, as editors and configuration management do."""
    new = path.with_suffix(".new")
    new.write_bytes(policy_bytes(*(categories or RED_AND_GREEN), **keys))
    new.replace(path)


def picture(colour: str, mark: str = "") -> bytes:
    """A JPEG of one colour; another ``mark`` makes other bytes that look the same."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG", comment=mark.encode())
    return buffer.getvalue()


def gallery(count: int, *, delay_seconds: float = 0.0) -> dict[str, Reply]:
    """Distinct pictures by path: red, green, blue, red, …"""
    colours = ("red", "green", "blue")
    return {
        f"/{n}.jpg": Reply(picture(colours[n % 3], str(n)), delay_seconds=delay_seconds)
        for n in range(count)
    }


def request(name: str, url: str | None = None, **fields: Any) -> bytes:
    image = {} if url is None else {"url": url}
    return json.dumps(
        {"schema_version": 1, "request_id": name, "item_id": name, **image, **fields}
    ).encode()


def requests_of(on: Stage, paths: Iterable[str], act: str = "") -> dict[str, bytes]:
    """A request for each path, named after it."""
    return {act + path: request(act + path, on.images.url(path)) for path in paths}


def fake_worker(on: Stage, **settings: str) -> AbstractContextManager[Worker]:
    """One that is ready. ``settings`` are named without their ``IMAGEWARDEN_``."""
    return worker_process(on, settings=_environment(settings), command=FAKE_WORKER)


def starting_fake_worker(
    on: Stage, *, command: Sequence[str] = FAKE_WORKER, **settings: str
) -> AbstractContextManager[Worker]:
    return starting_worker(on, settings=_environment(settings), command=command)


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    named = {f"IMAGEWARDEN_{name}": value for name, value in settings.items()}
    return {**_FAKE_WORKER_SETTINGS, **named}


def command(
    *arguments: str,
    on: Stage | None = None,
    stdin: str = "",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """``imagewarden`` with these arguments, run to its end in a pipe.

    ``settings`` are named without their ``IMAGEWARDEN_``.
    """
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env={
            **{name: value for name, value in os.environ.items() if "IMAGEWARDEN" not in name},
            **(on.environment() if on else {}),
            **{f"IMAGEWARDEN_{name}": value for name, value in settings.items()},
            "PYTHONPATH": str(REPOSITORY),
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
    )


# ---------------------------------------------------------------- what came of it


class Ledger:
    """Of each request all the verdicts that came, in the order in which they came."""

    def __init__(self, names: Collection[str]) -> None:
        self.verdicts: defaultdict[str, list[Verdict]] = defaultdict(list)
        self._names = set(names)

    async def fill(self, exchange: Exchange, count: int | None = None) -> None:
        """Until ``count`` requests, or all, have a verdict."""
        wanted = len(self._names) if count is None else count
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.verdicts) < wanted:
                name, answer = await exchange.answer()
                assert name in self._names
                assert isinstance(answer, Verdict)
                self.verdicts[name].append(answer)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            self.verdicts[verdict.request_id].append(verdict)


async def answers_to(
    exchange: Exchange, records: Mapping[str, bytes]
) -> dict[str, Verdict | DeadLetter]:
    """Publishes the records; what came of each."""
    await exchange.publish(records)
    answers: dict[str, Verdict | DeadLetter] = {}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while answers.keys() != records.keys():
            name, answer = await exchange.answer()
            answers[name] = answer
    return answers


async def verdicts_on(exchange: Exchange, records: Mapping[str, bytes]) -> dict[str, Verdict]:
    answers = await answers_to(exchange, records)
    assert all(isinstance(answer, Verdict) for answer in answers.values())
    return {name: answer for name, answer in answers.items() if isinstance(answer, Verdict)}


async def all_records(on: Stage, topic: str) -> list[Record]:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        TopicReader(bootstrap=on.broker, topic=topic, client_id="tests") as reader,
    ):
        return [record async for record in reader.read_all()]


async def all_verdicts(on: Stage) -> list[Verdict]:
    records = await all_records(on, on.topics.verdicts_topic)
    return [Verdict.model_validate_json(record.value or b"") for record in records]


def committed_records(on: Stage) -> int:
    """How many records of the request topic the workers' group has committed."""
    group = on.topics.group
    admin = KafkaAdminClient(bootstrap_servers=on.broker)
    try:
        offsets = admin.list_group_offsets(group)
    finally:
        admin.close()
    return sum(
        committed.offset
        for partition, committed in offsets[group].items()
        if partition.topic == on.topics.requests_topic and committed.offset > 0
    )


def metric(worker: Worker, name: str, /, **labels: str) -> float:
    """The sum of the samples of that name with these labels; 0 where there is none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(worker.metrics())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def probe(worker: Worker, name: str) -> tuple[int, str]:
    """Status and text of ``livez`` or ``readyz``."""
    response = httpx.get(f"http://{worker.address()}/{name}")
    return response.status_code, response.text.strip()


def closed_port() -> int:
    """One on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- waiting


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Returns once ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:g} s"
        await asyncio.sleep(0.05)


async def ended(worker: Worker) -> int:
    """The exit code."""
    await eventually(lambda: worker.process.poll() is not None, "the worker ends")
    return worker.process.wait()


async def terminated(worker: Worker) -> int:
    """SIGTERM; the exit code."""
    worker.process.terminate()
    return await ended(worker)


def logged(worker: Worker, event: str) -> bool:
    return any(worker.lines(event))
