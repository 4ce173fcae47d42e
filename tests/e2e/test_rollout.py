"""A fleet that is replaced worker by worker while requests come, as a rolling update does it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import pytest

from tests.bench.service import Client
from tests.chaos.groups import unread
from tests.e2e.scene import (
    KAFKA,
    all_verdicts,
    eventually,
    gallery,
    logged,
    request,
    starting_fake_worker,
    terminated,
)
from worker.demo.stage import Stage, Worker

WORKERS = 3
PER_SECOND = 40.0
PICTURES = 200

on_apache_kafka = pytest.mark.skipif(
    KAFKA is None,
    reason="the embedded broker is no measure of what a rebalance costs; `make test-kafka` runs it",
)


class SteadyLoad:
    """Requests at a steady rate until told to stop; ``due`` is when each was to be published, in
    the event loop's time."""

    def __init__(self, client: Client, on: Stage) -> None:
        self.due: dict[str, float] = {}
        self._client = client
        self._on = on
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as publishing:
            at = loop.time()
            for number in itertools.count():
                if self._stopped.is_set():
                    return
                name = f"{number:05}"
                value = request(name, self._on.images.url(f"/{number % PICTURES}.jpg"))
                self.due[name] = at
                topic = self._on.topics.requests_topic
                publishing.create_task(self._client.publish(topic, {name: value}))
                at += 1 / PER_SECOND
                await asyncio.sleep(at - loop.time())

    def stop(self) -> None:
        self._stopped.set()


async def answered(client: Client, more: int) -> None:
    """Once so many more requests have an answer."""
    wanted = len(client.answers) + more
    await eventually(lambda: len(client.answers) >= wanted, f"{more} more answers")


def lag(on: Stage) -> int:
    return sum(unread(on.broker, on.topics.group, on.topics.requests_topic).values())


def p99_ms(client: Client, due: Mapping[str, float]) -> float:
    return float(np.percentile([1000 * (client.answered_at[name] - due[name]) for name in due], 99))


def between(due: Mapping[str, float], start: float, end: float) -> Mapping[str, float]:
    return {name: at for name, at in due.items() if start <= at < end}


@on_apache_kafka
async def test_a_fleet_replaced_one_by_one_under_load_loses_nothing_and_leaves_no_lag(
    on: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    on.images.replies |= gallery(PICTURES, delay_seconds=0.05)
    names = (f"worker-{number}" for number in itertools.count())
    clock = asyncio.get_running_loop().time
    with ExitStack() as processes:

        def start() -> Worker:
            return processes.enter_context(starting_fake_worker(on, WORKER=next(names)))

        async def ready(worker: Worker) -> None:
            await eventually(lambda: logged(worker, "ready"), "a worker is ready")

        fleet = [start() for _ in range(WORKERS)]
        await asyncio.gather(*map(ready, fleet))
        async with Client(on) as client:
            load = SteadyLoad(client, on)
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                await answered(client, 100)
                warm = clock()
                await answered(client, 200)
                began = clock()
                exits = []
                for old in fleet:
                    await ready(start())
                    exits.append(await terminated(old))
                ended = clock()
                await answered(client, 200)
                load.stop()
            await client.until_answered(load.due)
        await eventually(lambda: not lag(on), "all is committed")
        verdicts = await all_verdicts(on)

    p99 = {
        "before": p99_ms(client, between(load.due, warm, began)),
        "during": p99_ms(client, between(load.due, began, ended)),
        "after": p99_ms(client, between(load.due, ended, clock())),
    }
    with capsys.disabled():
        told = ", ".join(f"{when} {value:.0f} ms" for when, value in p99.items())
        print(f"\nrollout of {WORKERS} workers in {ended - began:.0f} s: p99 {told}")
    assert exits == [0] * WORKERS
    assert {verdict.request_id for verdict in verdicts} == load.due.keys()
    assert len(verdicts) == len(load.due)  # who leaves in good order leaves nothing to repeat
