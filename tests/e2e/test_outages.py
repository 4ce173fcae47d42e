"""Without Redis it works; without a broker it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from tests.e2e.scene import (
    closed_port,
    eventually,
    fake_worker,
    gallery,
    logged,
    metric,
    picture,
    probe,
    requests_of,
    starting_fake_worker,
    terminated,
    verdicts_on,
)
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, Worker


async def test_without_redis_verdicts_go_on_and_a_metric_says_so(on: Stage) -> None:
    async with Exchange(on) as exchange:
        with fake_worker(on, REDIS__URL=f"redis://127.0.0.1:{closed_port()}/0") as worker:
            await judged_until_redis_is_down(exchange, on, worker)
            assert logged(worker, "cache_down")


async def test_redis_lost_in_the_middle_costs_nothing_but_its_answers(on: Stage) -> None:
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            on.images.replies |= gallery(3)
            before = requests_of(on, gallery(3), "before")
            await verdicts_on(exchange, before)
            assert metric(worker, "imagewarden_cache_up", tier="redis") == 1
            with redis.Redis.from_url(on.redis) as client:
                client.shutdown(nosave=True)
            await judged_until_redis_is_down(exchange, on, worker)
            again = await verdicts_on(exchange, requests_of(on, gallery(3), "after"))
    assert {verdict.cache for verdict in again.values()} == {"memory"}


async def judged_until_redis_is_down(exchange: Exchange, on: Stage, worker: Worker) -> None:
    """Image after image, all of them examined: it takes more than one failure to call it down."""
    for n in range(100):
        path = f"/until-down-{n}.jpg"
        on.images.replies[path] = Reply(picture("red", path))
        [verdict] = (await verdicts_on(exchange, requests_of(on, [path]))).values()
        assert verdict.decision == "block"
        metrics = worker.metrics()
        if 'imagewarden_cache_up{tier="redis"} 0.0' in metrics:
            return
    pytest.fail("the metric never said that Redis is away")


@asynccontextmanager
async def forwarding(port: int, to: str) -> AsyncIterator[None]:
    """What connects to ``port`` talks to the first of the addresses in ``to``."""
    host, _, target = to.partition(",")[0].partition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection(host, int(target))
        await asyncio.gather(
            pump(reader, their_writer), pump(their_reader, writer), return_exceptions=True
        )

    async with await asyncio.start_server(connected, "127.0.0.1", port):
        yield


async def test_a_worker_waits_for_its_broker_and_says_what_it_waits_for(on: Stage) -> None:
    on.images.replies |= gallery(3)
    port = closed_port()
    with starting_fake_worker(on, KAFKA__BOOTSTRAP=f"127.0.0.1:{port}") as worker:
        await eventually(lambda: logged(worker, "broker_unreachable"), "it says so")
        told = next(iter(worker.lines("broker_unreachable")))
        assert told["bootstrap"] == f"127.0.0.1:{port}"
        assert told["level"] == "warning"
        assert probe(worker, "livez") == (200, "starting: waiting for the broker")
        assert probe(worker, "readyz") == (503, "waiting for the broker")
        async with forwarding(port, to=on.broker), Exchange(on) as exchange:
            await verdicts_on(exchange, requests_of(on, on.images.replies))
            assert probe(worker, "readyz")[0] == 200
            assert await terminated(worker) == 0


async def test_a_worker_that_waits_for_its_broker_can_be_stopped(on: Stage) -> None:
    with starting_fake_worker(on, KAFKA__BOOTSTRAP=f"127.0.0.1:{closed_port()}") as worker:
        await eventually(lambda: logged(worker, "broker_unreachable"), "it waits")
        assert await terminated(worker) == 0
