"""What every store holds to, in memory, on disk and on a server; and what its outages look like."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from tests.contract.redis_server import Server
from worker.authoring.disk_store import DiskStore
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.embedded import embedded_redis
from worker.embedding_format import encode_embedding, parse_embedding
from worker.seams import Store
from worker.stores import MemoryStore, RedisStore
from worker.telemetry import REGISTRY
from worker.types import Embedding, EmbeddingKey, ImageFacts, Seen, digest_of

PATIENT = 30.0  #: seconds; for a server that is well, on a machine that is busy
KEY = EmbeddingKey("ab" * 32, digest_of("model"), digest_of("plan"))
EMBEDDING = Embedding(
    KEY,
    np.full((1, 4), 0.5, np.float16),
    ImageFacts(KEY.sha256, "0f" * 32, "image/png", 1, 1, 70, 1, (0,)),
)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with embedded_redis() as url:
        yield url


@pytest.fixture
def admin(redis_url: str) -> Iterator[redis.Redis]:
    """The shared server, which must hold no key without a time to live when a test ends."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
        assert [key for key in client.scan_iter() if client.pttl(key) == -1] == []


@pytest.fixture
async def redis_store(redis_url: str, admin: redis.Redis) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_url, timeout_seconds=PATIENT, prefix=f"{uuid.uuid4()}:")
    yield store
    await store.close()


@pytest.fixture
async def disk_store(tmp_path: Path) -> AsyncIterator[DiskStore]:
    store = DiskStore(tmp_path / "cache.sqlite")
    yield store
    await store.close()


@pytest.fixture(params=["memory", "disk", "redis"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENT):
        while not await condition():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- the contract


async def test_what_was_put_is_got(store: Store) -> None:
    await store.put([("a", b"1", 60), ("b", b"2", 60)])
    assert await store.get(["b", "a"]) == [b"2", b"1"]


async def test_absent_keys_are_none_in_their_places(store: Store) -> None:
    await store.put([("b", b"2", 60)])
    assert await store.get(["a", "b", "c"]) == [None, b"2", None]


async def test_nothing_asked_is_nothing_answered(store: Store) -> None:
    assert list(await store.get([])) == []
    await store.put([])
    await store.delete([])


async def test_a_key_may_be_asked_twice_in_one_call(store: Store) -> None:
    await store.put([("a", b"1", 60)])
    assert await store.get(["a", "a"]) == [b"1", b"1"]


async def test_the_last_value_put_under_a_key_counts(store: Store) -> None:
    await store.put([("a", b"1", 60), ("a", b"2", 60)])
    await store.put([("b", b"1", 60)])
    await store.put([("b", b"2", 60)])
    assert await store.get(["a", "b"]) == [b"2", b"2"]


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", b"\r\n$-1\r\n", bytes(range(256)), os.urandom(100_000)],
    ids=["empty", "nul", "protocol", "all bytes", "100 kB"],
)
async def test_any_bytes_come_back_unchanged(store: Store, value: bytes) -> None:
    await store.put([("a", value, 60)])
    assert await store.get(["a"]) == [value]


async def test_deleted_keys_are_gone_and_others_stay(store: Store) -> None:
    await store.put([("a", b"1", 60), ("b", b"2", 60), ("c", b"3", 60)])
    await store.delete(["a", "c", "never put"])
    assert await store.get(["a", "b", "c"]) == [None, b"2", None]


async def test_a_value_ends_with_its_time_to_live(store: Store) -> None:
    await store.put([("long", b"1", 600), ("short", b"2", 0.05)])

    async def short_is_gone() -> bool:
        return await store.get(["long", "short"]) == [b"1", None]

    await until(short_is_gone)


@pytest.mark.parametrize("seconds", [0, -1.5])
async def test_a_put_with_no_time_to_live_removes_the_key(store: Store, seconds: float) -> None:
    await store.put([("a", b"1", 60)])
    await store.put([("a", b"2", seconds), ("b", b"3", seconds)])
    assert await store.get(["a", "b"]) == [None, None]


async def test_many_keys_in_one_call(store: Store) -> None:
    keys = [f"key {n}" for n in range(1000)]
    await store.put((key, key.encode(), 60) for key in keys)
    assert await store.get(keys) == [key.encode() for key in keys]


async def test_each_of_many_concurrent_callers_gets_its_own_answer(store: Store) -> None:
    async def put_and_get(n: int) -> None:
        mine = [f"{n} {i}" for i in range(n % 5)]
        await store.put([(key, key.encode(), 60) for key in mine])
        assert list(await store.get([*mine, "absent"])) == [*(k.encode() for k in mine), None]

    await asyncio.gather(*(put_and_get(n) for n in range(300)))


async def test_a_caller_that_gives_up_takes_nothing_from_the_others(store: Store) -> None:
    await store.put([("a", b"1", 60)])
    callers = [asyncio.create_task(store.get(["a"])) for _ in range(10)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    assert await asyncio.gather(*callers[1::2]) == [[b"1"]] * 5


# ---------------------------------------------------------------- Redis when it is well


async def test_reads_of_one_moment_share_a_round_trip(
    redis_store: RedisStore, admin: redis.Redis
) -> None:
    await redis_store.get(["connects"])
    admin.config_resetstat()
    await asyncio.gather(*(redis_store.get([f"{n}"]) for n in range(50)))
    assert admin.info("commandstats")["cmdstat_mget"]["calls"] == 1


async def test_stores_with_different_prefixes_do_not_see_each_other(
    redis_url: str, redis_store: RedisStore
) -> None:
    other = RedisStore(redis_url, timeout_seconds=PATIENT, prefix=f"{uuid.uuid4()}:")
    try:
        await redis_store.put([("a", b"1", 60)])
        assert await other.get(["a"]) == [None]
    finally:
        await other.close()


async def test_a_value_of_another_type_is_a_miss(redis_url: str, admin: redis.Redis) -> None:
    prefix = f"{uuid.uuid4()}:"
    store = RedisStore(redis_url, timeout_seconds=PATIENT, prefix=prefix)
    try:
        admin.rpush(f"{prefix}list", "x")
        admin.expire(f"{prefix}list", 60)
        assert await store.get(["list"]) == [None]
    finally:
        await store.close()


async def test_no_key_of_the_caches_is_without_a_time_to_live_or_shows_a_url(
    redis_store: RedisStore, admin: redis.Redis
) -> None:
    embeddings, urls = caches(redis_store)
    await embeddings.put(EMBEDDING)
    await urls.put("https://host.example/?token=s3cr3t", Seen(KEY.sha256, '"etag"', 0.0))
    keys = list(admin.scan_iter())
    assert len(keys) >= 2
    assert all(admin.pttl(key) > 0 for key in keys)
    shown = repr(keys) + repr(admin.mget(keys))
    assert "host.example" not in shown
    assert "s3cr3t" not in shown


async def test_garbage_planted_in_redis_is_deleted_counted_and_a_miss(
    redis_url: str, admin: redis.Redis
) -> None:
    prefix = f"{uuid.uuid4()}:"
    store = RedisStore(redis_url, timeout_seconds=PATIENT, prefix=prefix)
    try:
        embeddings, urls = caches(store)
        await embeddings.put(EMBEDDING)
        await urls.put("http://host.example/", Seen(KEY.sha256, None, 0.0))
        planted = list(admin.scan_iter(match=f"{prefix}*"))
        assert len(planted) == 2
        for key in planted:
            admin.set(key, os.urandom(1500), ex=60)
        before = metric("imagewarden_cache_rejected_total", tier="redis")
        assert await embeddings.get(KEY) is None
        assert await urls.get("http://host.example/") is None
        assert metric("imagewarden_cache_rejected_total", tier="redis") == before + 2
        assert list(admin.scan_iter(match=f"{prefix}*")) == []
    finally:
        await store.close()


def caches(store: Store) -> tuple[EmbeddingCache, UrlCache]:
    tiers: Stores = [("redis", store)]
    embeddings = EmbeddingCache(
        tiers, dimension=4, ttl_seconds=60, encode=encode_embedding, parse=parse_embedding
    )
    urls = UrlCache(
        tiers, url_key=b"k" * 32, ttl_seconds=60, revalidate_seconds=600, clock=lambda: 1.0
    )
    return embeddings, urls


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


# ---------------------------------------------------------------- Redis when it is not


@pytest.fixture
def server() -> Iterator[Server]:
    with embedded_redis() as url:
        yield Server(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def opened(
    url: str, clock: Clock, *, timeout_seconds: float = PATIENT
) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, timeout_seconds=timeout_seconds, breaker_seconds=5, clock=clock)
    try:
        yield store
    finally:
        await store.close()


def up() -> float:
    return metric("imagewarden_cache_up", tier="redis")


def errors(operation: str) -> float:
    return metric("imagewarden_cache_errors_total", tier="redis", operation=operation)


async def test_a_killed_server_is_a_miss_and_soon_not_even_asked(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        await store.put([("a", b"1", 60)])
        assert await store.get(["a"]) == [b"1"]
        assert up() == 1
        server.kill()
        before = errors("read"), errors("write")
        with capture_logs() as logs:
            for _ in range(10):
                assert await store.get(["a", "b"]) == [None, None]
                await store.put([("a", b"2", 60)])
                await store.delete(["a"])
        assert up() == 0
        assert (errors("read"), errors("write")) == (before[0] + 2, before[1] + 2)
        assert sorted((log["event"], log["operation"]) for log in logs) == [
            ("cache_down", "read"),
            ("cache_down", "write"),
        ]


async def test_a_server_that_comes_back_is_used_again_after_the_breaker_s_time(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        server.kill()
        for _ in range(2):
            await store.get(["a"])
            await store.put([("a", b"1", 60)])
        with server.started_again(), capture_logs() as logs:
            clock.now += 4
            await store.put([("a", b"1", 60)])
            with server.admin() as admin:
                assert admin.dbsize() == 0
            clock.now += 1
            await store.put([("a", b"1", 60)])
            assert up() == 0  # reads have not been tried yet
            assert await store.get(["a"]) == [b"1"]
            assert up() == 1
        assert [(log["event"], log["operation"]) for log in logs] == [
            ("cache_up", "write"),
            ("cache_up", "read"),
        ]


async def test_while_it_is_down_each_failed_try_starts_the_breaker_s_time_anew(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        server.kill()
        before = errors("read")
        with capture_logs() as logs:
            for tries in range(2, 6):
                await asyncio.gather(*(store.get([f"{n}"]) for n in range(10)))
                await store.get(["a"])
                await store.get(["a"])
                assert errors("read") == before + tries
                clock.now += 5
        assert len(logs) == 1


async def test_a_server_restarted_between_two_calls_is_no_outage(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        await store.put([("a", b"1", 60)])
        await store.get(["a"])
        server.kill()
        with server.started_again():
            before = errors("read"), errors("write")
            await store.put([("a", b"2", 60)])
            assert await store.get(["a"]) == [b"2"]
            assert (errors("read"), errors("write")) == before


async def test_a_frozen_server_is_a_miss_for_everyone_who_waits_and_then_is_used_again(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock, timeout_seconds=0.1) as store:

        async def works() -> bool:
            clock.now += 5
            await store.put([("a", b"1", 60)])
            return await store.get(["a"]) == [b"1"]

        await until(works)
        with server.frozen():
            before = errors("read")
            answers = await asyncio.gather(*(store.get(["a"]) for _ in range(500)))
            assert answers == [[None]] * 500
            assert errors("read") == before + 2
            assert up() == 0
            await store.put([("a", b"2", 60)])
        await until(works)
        assert up() == 1


async def test_nobody_waits_behind_the_one_that_tries_whether_the_server_is_back(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        server.kill()
        for _ in range(2):
            await store.get(["a"])
        with server.started_again():
            with server.frozen():
                clock.now += 5
                callers = [asyncio.create_task(store.get([f"{n}"])) for n in range(200)]
                assert await asyncio.gather(*callers[1:]) == [[None]] * 199
                assert not callers[0].done()
            assert await callers[0] == [None]
        assert up() == 1


async def test_a_caller_that_gives_up_its_try_leaves_the_next_one_and_its_answer_to_another(
    server: Server, clock: Clock
) -> None:
    async with opened(server.url, clock) as store:
        server.kill()
        for _ in range(2):
            await store.get(["a"])
        with server.started_again():
            with server.admin() as admin:
                for key in "ab":
                    admin.set(f"imagewarden:{key}", f"value of {key}", ex=60)
            with server.frozen():
                clock.now += 5
                caller = asyncio.create_task(store.get(["a"]))
                for _ in range(100):  # to connect and to ask; if it has not, that is a case too
                    await asyncio.sleep(0)
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
                assert await store.get(["b"]) == [None]
            clock.now += 5
            assert await store.get(["b"]) == [b"value of b"]
            assert up() == 1


async def test_who_waits_for_a_frozen_server_ends_with_the_store(
    server: Server, clock: Clock
) -> None:
    with server.frozen():
        async with opened(server.url, clock) as store:
            callers = [asyncio.create_task(store.get([f"{n}"])) for n in range(100)]
            await asyncio.sleep(0)
        await asyncio.wait(callers, timeout=PATIENT)
        assert all(caller.cancelled() for caller in callers)


async def test_a_store_of_a_frozen_server_can_be_closed(server: Server, clock: Clock) -> None:
    with server.frozen():
        async with opened(server.url, clock, timeout_seconds=0.1) as store:
            assert await store.get(["a"]) == [None]
            await store.put([("a", b"x" * 10_000_000, 60)])


async def test_a_full_server_still_answers_reads(server: Server, clock: Clock) -> None:
    with server.admin() as admin:
        async with opened(server.url, clock) as store:
            await store.put([("a", b"1", 60)])
            admin.config_set("maxmemory-policy", "noeviction")
            admin.config_set("maxmemory", 1)
            before = errors("write")
            for _ in range(3):
                await store.put([("b", b"2", 60)])
            assert errors("write") == before + 2
            assert up() == 0
            assert await store.get(["a", "b"]) == [b"1", None]
            assert up() == 0
            admin.config_set("maxmemory", 0)
            clock.now += 5
            await store.put([("b", b"2", 60)])
            assert await store.get(["b"]) == [b"2"]
            assert up() == 1


async def test_a_replica_still_answers_reads(server: Server, clock: Clock) -> None:
    with server.admin() as admin:
        async with opened(server.url, clock) as store:
            await store.put([("a", b"1", 60)])
            admin.replicaof("127.0.0.1", 1)
            for _ in range(2):
                await store.put([("b", b"2", 60)])
            assert up() == 0
            assert await store.get(["a", "b"]) == [b"1", None]


@pytest.mark.parametrize("password", ["", ":wr0ng@"], ids=["none", "wrong"])
async def test_a_refused_password_is_a_miss_and_not_in_the_log(
    server: Server, clock: Clock, password: str
) -> None:
    with server.admin() as admin:
        admin.config_set("requirepass", "r1ght")
    with capture_logs() as logs:
        async with opened(server.url.replace("://", f"://{password}"), clock) as store:
            for _ in range(3):
                await store.put([("a", b"1", 60)])
                assert await store.get(["a"]) == [None]
            assert up() == 0
    assert len(logs) == 2
    assert "wr0ng" not in repr(logs)
    async with opened(server.url.replace("://", "://:r1ght@"), clock) as store:
        await store.put([("a", b"1", 60)])
        assert await store.get(["a"]) == [b"1"]


_COMMANDS = (b"CLIENT", b"MGET", b"SET")


@pytest.mark.parametrize(
    "answer",
    [
        b"-LOADING the dataset is being loaded\r\n",
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b":1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"*2\r\n:1\r\n:2\r\n",
        b"$nonsense\r\n",
        b"\0\xff\r\n",
        b"",
    ],
)
async def test_whatever_else_listens_on_the_port_answers_nothing(
    answer: bytes, clock: Clock
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while answer and (asked := await reader.read(65_536)):
                commands = sum(asked.count(b"\r\n%b\r\n" % name) for name in _COMMANDS)
                writer.write(answer * commands)
                await writer.drain()
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with opened(f"redis://127.0.0.1:{port}/0", clock, timeout_seconds=0.1) as store:
            for _ in range(3):
                assert await store.get(["a", "b"]) == [None, None]
                await store.put([("a", b"1", 60)])


def test_a_url_that_is_none_of_redis_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        RedisStore("http://127.0.0.1/")
