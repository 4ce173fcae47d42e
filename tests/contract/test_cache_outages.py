"""Whatever becomes of Redis, images are examined, and rightly; how often one waited is counted.

The clock of the breaker stands still, so each kind of operation may wait for two round trips in an
outage and then never again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest

from tests.contract.redis_server import Server
from tests.fakes import COLOURS, FakeEncoder
from tests.fakes_images import FakeDecoder, FakeFetcher
from worker.cache import EmbeddingCache, UrlCache
from worker.embedded import embedded_redis
from worker.embedding_format import encode_embedding, parse_embedding
from worker.examine import Examiner
from worker.examined import Examined
from worker.hosts import Hosts
from worker.stores import RedisStore
from worker.telemetry import REGISTRY
from worker.types import Embedding, Fetched, FramePlan

IMAGES = [" ".join(colours) for colours in itertools.product(COLOURS, repeat=3)]
BREAKER_SECONDS = 5.0
PATIENT = 30.0


class Worker:
    """Examines images with no cache but Redis. ``clock`` is the breaker's, in seconds."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.clock = 0.0
        self.encoder, self.fetcher = FakeEncoder(), FakeFetcher()
        self.store = RedisStore(
            url,
            timeout_seconds=timeout_seconds,
            breaker_seconds=BREAKER_SECONDS,
            clock=lambda: self.clock,
        )
        self.examiner = Examiner(
            fetcher=self.fetcher,
            hosts=Hosts(slots=8, share=1.0),
            decoder=FakeDecoder(),
            encoder=self.encoder,
            embeddings=EmbeddingCache(
                [("redis", self.store)],
                dimension=self.encoder.info.dimension,
                ttl_seconds=600,
                encode=encode_embedding,
                parse=parse_embedding,
            ),
            urls=UrlCache(
                [("redis", self.store)],
                url_key=b"k" * 32,
                ttl_seconds=600,
                revalidate_seconds=600,
            ),
            keep=_nowhere,
            images_in_work=8,
            low_share=1.0,
            batch_rows=8,
            batch_wait_seconds=0,
            batches_in_flight=1,
        )

    async def examine_all(self) -> list[Examined]:
        """All of ``IMAGES`` at once, each held against what it shows."""
        for number, image in enumerate(IMAGES):
            self.fetcher.serves[_url(number)] = Fetched(image.encode())
        asking = (self.examiner.by_url(_url(number), FramePlan()) for number in range(len(IMAGES)))
        async with asyncio.timeout(PATIENT):
            examined = await asyncio.gather(*asking)
        for image, each in zip(IMAGES, examined, strict=True):
            shown = self.encoder.encode_texts(image.split()).astype(np.float16)
            assert each.embedding.rows.tobytes() == shown.tobytes()
        return examined


@asynccontextmanager
async def working(server: Server, *, timeout_seconds: float = PATIENT) -> AsyncIterator[Worker]:
    worker = Worker(server.url, timeout_seconds=timeout_seconds)
    running = asyncio.create_task(worker.examiner.run())
    try:
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await worker.store.close()


async def _nowhere(_: Embedding) -> None: ...


def _url(number: int) -> str:
    return f"http://images.test/{number}"


@pytest.fixture
def server() -> Iterator[Server]:
    with embedded_redis() as url:
        yield Server(url)


def failed_round_trips(operation: str) -> float:
    labels = {"tier": "redis", "operation": operation}
    return REGISTRY.get_sample_value("imagewarden_cache_errors_total", labels) or 0


def not_believed() -> float:
    return REGISTRY.get_sample_value("imagewarden_cache_rejected_total", {"tier": "redis"}) or 0


async def fill(server: Server) -> None:
    async with working(server) as worker:
        await worker.examine_all()
    with server.admin() as admin:
        assert admin.dbsize() == 2 * len(IMAGES)  # an embedding, and what its URL served


# ---------------------------------------------------------------- outages


@contextmanager
def killed(server: Server) -> Iterator[None]:
    server.kill()
    yield


@contextmanager
def paused(server: Server, what: str) -> Iterator[None]:
    with server.admin() as admin:
        admin.execute_command("CLIENT", "PAUSE", 600_000, what)
    yield


@contextmanager
def full(server: Server) -> Iterator[None]:
    with server.admin() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
    yield


@contextmanager
def replica(server: Server) -> Iterator[None]:
    with server.admin() as admin:
        admin.replicaof("127.0.0.1", 1)
    yield


@contextmanager
def forbidden(server: Server, *rules: str) -> Iterator[None]:
    with server.admin() as admin:
        admin.execute_command("ACL", "SETUSER", "default", *rules)
    yield


Outage = Callable[[Server], AbstractContextManager[None]]
SHORT, LONG = 0.1, 1.0  #: seconds, for outages in which nothing else ends a wait


@pytest.mark.parametrize(
    ("outage", "timeout_seconds", "reads", "writes"),
    [
        pytest.param(killed, PATIENT, 2, 2, id="killed"),
        pytest.param(Server.frozen, SHORT, 2, 2, id="frozen"),
        pytest.param(lambda server: paused(server, "ALL"), SHORT, 2, 2, id="slow"),
        pytest.param(lambda server: paused(server, "WRITE"), LONG, 0, 2, id="slow to write"),
        pytest.param(full, PATIENT, 0, 2, id="full"),
        pytest.param(replica, PATIENT, 0, 2, id="a replica"),
        pytest.param(lambda s: forbidden(s, "-@all"), PATIENT, 2, 2, id="access withdrawn"),
        pytest.param(lambda s: forbidden(s, "-@write"), PATIENT, 0, 2, id="writing withdrawn"),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["new images", "images it knows"])
async def test_images_are_examined_in_an_outage_and_few_round_trips_are_waited_for(
    server: Server, outage: Outage, timeout_seconds: float, reads: int, writes: int, known: bool
) -> None:
    if known:
        await fill(server)
    async with working(server, timeout_seconds=timeout_seconds) as worker:
        before = failed_round_trips("read"), failed_round_trips("write")
        with outage(server):
            examined = await worker.examine_all()
        waited = failed_round_trips("read") - before[0], failed_round_trips("write") - before[1]
        answered = known and reads == 0
        assert waited == (reads, 0 if answered else writes)
        assert {each.tier for each in examined} == ({"redis"} if answered else {"none"})


async def test_in_a_long_outage_one_round_trip_of_a_kind_is_waited_for_in_a_breaker_s_time(
    server: Server,
) -> None:
    async with working(server, timeout_seconds=SHORT) as worker:
        with server.frozen():
            await worker.examine_all()
            for _ in range(3):
                before = failed_round_trips("read"), failed_round_trips("write")
                await worker.examine_all()
                assert (failed_round_trips("read"), failed_round_trips("write")) == before
                worker.clock += BREAKER_SECONDS
                await worker.examine_all()
                reads, writes = before
                assert failed_round_trips("read") == reads + 1
                assert failed_round_trips("write") == writes + 1


# ---------------------------------------------------------------- values that are none


def wipe(admin: Any) -> None:
    admin.flushall()


def plant_garbage(admin: Any) -> None:
    for key in admin.scan_iter():
        admin.set(key, os.urandom(2000), ex=600)


def cut_short(admin: Any) -> None:
    for key in admin.scan_iter():
        admin.set(key, admin.get(key)[:-1], ex=600)


def flip_a_bit(admin: Any) -> None:
    for key in admin.scan_iter():
        value = bytearray(admin.get(key))
        value[len(value) // 2] ^= 1
        admin.set(key, bytes(value), ex=600)


def mix_up(admin: Any) -> None:
    keys = sorted(admin.scan_iter())
    values = admin.mget(keys)
    for key, value in zip(keys, [*values[1:], values[0]], strict=True):
        admin.set(key, value, ex=600)


def change_types(admin: Any) -> None:
    for number, key in enumerate(admin.scan_iter()):
        admin.delete(key)
        [
            lambda key: admin.rpush(key, "x"),
            lambda key: admin.sadd(key, "x"),
            lambda key: admin.hset(key, "x", "y"),
            lambda key: admin.xadd(key, {"x": "y"}),
        ][number % 4](key)
        admin.expire(key, 600)


@pytest.mark.parametrize(
    ("damage", "rejected"),
    [
        (wipe, 0),
        (plant_garbage, len(IMAGES)),
        (cut_short, len(IMAGES)),
        (flip_a_bit, len(IMAGES)),
        (mix_up, len(IMAGES)),
        (change_types, 0),
    ],
)
async def test_images_are_examined_rightly_whatever_redis_holds_and_it_is_mended(
    server: Server, damage: Callable[[Any], None], rejected: int
) -> None:
    await fill(server)
    with server.admin() as admin:
        damage(admin)
    async with working(server) as worker:
        before = not_believed(), failed_round_trips("read"), failed_round_trips("write")
        assert {each.tier for each in await worker.examine_all()} == {"none"}
        # of each image first what its URL served, and then, once it is downloaded, its embedding
        assert not_believed() == before[0] + 2 * rejected
        assert (failed_round_trips("read"), failed_round_trips("write")) == before[1:]
        assert {each.tier for each in await worker.examine_all()} == {"redis"}
        assert len(worker.fetcher.asked) == len(IMAGES)


async def test_server_wiped_while_images_are_examined_is_no_outage(server: Server) -> None:
    async with working(server) as worker:
        before = failed_round_trips("read"), failed_round_trips("write")
        with server.admin() as admin:
            for _ in range(3):
                examining = asyncio.create_task(worker.examine_all())
                while not examining.done():
                    await asyncio.to_thread(admin.flushall)
                await examining
        assert (failed_round_trips("read"), failed_round_trips("write")) == before


async def test_server_restarted_empty_between_two_images_is_no_outage(server: Server) -> None:
    async with working(server) as worker:
        await worker.examine_all()
        server.kill()
        before = failed_round_trips("read"), failed_round_trips("write")
        with server.started_again():
            assert {each.tier for each in await worker.examine_all()} == {"none"}
            assert {each.tier for each in await worker.examine_all()} == {"redis"}
        assert (failed_round_trips("read"), failed_round_trips("write")) == before
