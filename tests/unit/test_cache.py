"""Tiers, and what is believed: embeddings by key, and what URLs served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from worker.cache import EmbeddingCache, Stores, UrlCache, are_unit, sealed
from worker.embedding_format import encode_embedding, parse_embedding
from worker.stores import ENTRY_OVERHEAD_BYTES, MemoryStore
from worker.telemetry import REGISTRY
from worker.types import CacheTier, Embedding, EmbeddingKey, ImageFacts, Seen, digest_of

DIMENSION = 4
KEY = EmbeddingKey("ab" * 32, digest_of("model"), digest_of("plan"))
URL = "https://cdn.example/cat.jpg?token=s3cr3t"
URL_KEY = b"sixteen bytes or more"
NOW = 1_700_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Recording(MemoryStore):
    """A store that can be looked into."""

    def __init__(self) -> None:
        super().__init__(max_bytes=1 << 20)
        self.items: dict[str, bytes] = {}
        self.seconds: dict[str, float] = {}
        self.gets = 0

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        self.gets += 1
        return await super().get(keys)

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        for key, value, seconds in items:
            self.items[key], self.seconds[key] = value, seconds
            await super().put([(key, value, seconds)])


def embedding(key: EmbeddingKey = KEY, rows: int = 2, dimension: int = DIMENSION) -> Embedding:
    numbers = np.linspace(-1, 1, rows * dimension).reshape(rows, dimension)
    return Embedding(
        key,
        (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float16),
        ImageFacts(key.sha256, "0f" * 32, "image/gif", 3, 2, 99, 7, tuple(range(rows))),
    )


def embeddings(
    stores: Stores,
    *,
    ttl_seconds: float = 60,
    parse: Callable[[bytes], Embedding] = parse_embedding,
) -> EmbeddingCache:
    return EmbeddingCache(
        stores,
        dimension=DIMENSION,
        ttl_seconds=ttl_seconds,
        encode=encode_embedding,
        parse=parse,
    )


def urls(
    stores: Stores,
    *,
    clock: Clock,
    ttl_seconds: float = 600,
    revalidate_seconds: float = 86_400,
    url_key: bytes = URL_KEY,
) -> UrlCache:
    return UrlCache(
        stores,
        url_key=url_key,
        ttl_seconds=ttl_seconds,
        revalidate_seconds=revalidate_seconds,
        clock=clock,
    )


def rejected(tier: CacheTier) -> float:
    return REGISTRY.get_sample_value("imagewarden_cache_rejected_total", {"tier": tier}) or 0


# ---------------------------------------------------------------- the memory store


async def test_the_least_recently_used_entry_goes_first() -> None:
    store = MemoryStore(max_bytes=2 * (ENTRY_OVERHEAD_BYTES + 2))
    await store.put([("a", b"1", 60), ("b", b"2", 60)])
    await store.get(["a"])
    await store.put([("c", b"3", 60)])
    assert await store.get(["a", "b", "c"]) == [b"1", None, b"3"]


async def test_a_value_over_the_bound_is_not_kept_and_its_predecessor_goes() -> None:
    store = MemoryStore(max_bytes=ENTRY_OVERHEAD_BYTES + 10)
    await store.put([("a", b"1", 60)])
    await store.put([("a", b"x" * 100, 60)])
    assert await store.get(["a"]) == [None]
    assert store.size_bytes == 0


async def test_an_entry_ends_with_its_time_to_live_although_it_is_used() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=1 << 20, clock=clock)
    await store.put([("short", b"1", 10), ("long", b"2", 20)])
    clock.now += 9.9
    assert await store.get(["short", "long"]) == [b"1", b"2"]
    clock.now += 0.2
    assert await store.get(["short", "long"]) == [None, b"2"]


# ---------------------------------------------------------------- embeddings


async def test_an_embedding_that_was_put_is_answered_by_the_first_tier() -> None:
    cache = embeddings([("memory", MemoryStore()), ("redis", MemoryStore())])
    assert await cache.get(KEY) is None
    await cache.put(embedding())
    hit = await cache.get(KEY)
    assert hit is not None
    found, tier = hit
    assert tier == "memory"
    assert (found.key, found.facts) == (KEY, embedding().facts)
    assert found.rows.dtype == np.float16
    assert found.rows.tobytes() == embedding().rows.tobytes()


async def test_a_hit_in_a_lower_tier_fills_the_ones_above() -> None:
    upper, lower = Recording(), Recording()
    await embeddings([("redis", lower)]).put(embedding())
    cache = embeddings([("memory", upper), ("redis", lower)])
    assert [hit[1] for _ in range(2) if (hit := await cache.get(KEY))] == ["redis", "memory"]
    assert (upper.items, lower.gets) == (lower.items, 1)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, sha256="cd" * 32),
        replace(KEY, model=digest_of("another model")),
        replace(KEY, plan=digest_of("another plan")),
    ],
)
async def test_content_model_and_plan_are_each_part_of_the_key(other: EmbeddingKey) -> None:
    cache = embeddings([("memory", MemoryStore())])
    await cache.put(embedding())
    assert await cache.get(other) is None


async def test_embeddings_end_with_their_time_to_live() -> None:
    clock = Clock()
    cache = embeddings([("memory", MemoryStore(clock=clock))], ttl_seconds=60)
    await cache.put(embedding())
    clock.now += 61
    assert await cache.get(KEY) is None


def _with(number: float) -> Embedding:
    one = embedding()
    one.rows[1, 2] = number
    return one


@pytest.mark.parametrize(
    "parsed",
    [
        embedding(replace(KEY, sha256="cd" * 32)),
        embedding(replace(KEY, model=KEY.model[:-1] + "0")),
        replace(embedding(), facts=replace(embedding().facts, sha256="cd" * 32)),
        embedding(dimension=DIMENSION + 1),
        embedding(rows=0),
        replace(embedding(), facts=replace(embedding().facts, rows=(0,))),
        replace(embedding(), rows=embedding().rows.ravel()),
        replace(embedding(), rows=embedding().rows.astype(np.float32)),
        _with(np.nan),
        _with(np.inf),
        _with(1.5),
        replace(embedding(), rows=np.zeros_like(embedding().rows)),
        replace(embedding(), rows=embedding().rows * np.float16(0.99)),
    ],
    ids=[
        "other content",
        "other model with an equal short digest",
        "facts of other content",
        "other dimension",
        "no rows",
        "rows not those of the facts",
        "flat",
        "float32",
        "not a number",
        "not finite",
        "longer than one",
        "nothing but zeros",
        "shorter than one by a hundredth",
    ],
)
async def test_what_parses_but_is_no_answer_is_deleted_and_counted_as_a_miss(
    parsed: Embedding,
) -> None:
    store = MemoryStore()
    cache = embeddings([("memory", store)], parse=lambda _: parsed)
    await cache.put(embedding())
    before = rejected("memory")
    assert await cache.get(KEY) is None
    assert rejected("memory") == before + 1
    assert store.size_bytes == 0


@pytest.mark.parametrize("garbage", [b"", b"\0" * 1500, b"{}", b"[" * 100_000, b"\xff\xfe"])
@pytest.mark.parametrize("seal", [bytes, sealed], ids=["bare", "sealed"])
async def test_garbage_in_one_tier_does_not_hide_the_good_value_below(
    garbage: bytes, seal: Callable[[bytes], bytes]
) -> None:
    upper, lower = Recording(), Recording()
    cache = embeddings([("memory", upper), ("redis", lower)])
    await cache.put(embedding())
    await upper.put([(key, seal(garbage), 60) for key in upper.items])
    assert [hit[1] for _ in range(2) if (hit := await cache.get(KEY))] == ["redis", "memory"]


async def test_a_value_that_stands_under_another_name_is_deleted_and_counted_as_a_miss() -> None:
    store = Recording()
    cache = embeddings([("memory", store)])
    other = replace(KEY, sha256="cd" * 32)
    await cache.put(embedding())
    await cache.put(embedding(other))
    mine, theirs = store.items
    await store.put([(mine, store.items[theirs], 60)])
    before = rejected("memory")
    assert await cache.get(KEY) is None
    assert rejected("memory") == before + 1
    assert await cache.get(other) is not None


@pytest.mark.parametrize("dimension", [1, 32, 384, 1024, 8192])
def test_whatever_float16_rounds_off_a_unit_vector_it_is_one_still(dimension: int) -> None:
    noise = np.random.default_rng(dimension).standard_normal((100, dimension))
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    assert are_unit(unit.astype(np.float16))
    assert not are_unit((unit * 1.002).astype(np.float16))


# ---------------------------------------------------------------- URLs


async def test_what_a_url_served_is_remembered() -> None:
    clock = Clock()
    cache = urls([("memory", MemoryStore())], clock=clock)
    assert await cache.get(URL) is None
    seen = Seen("ab" * 32, '"v1"', NOW)
    await cache.put(URL, seen)
    assert await cache.get(URL) == (seen, "memory")
    assert await cache.get(URL + "&x=1") is None


async def test_it_is_fresh_for_the_time_to_live() -> None:
    clock = Clock()
    cache = urls([], clock=clock, ttl_seconds=600)
    seen = Seen("ab" * 32, None, NOW)
    assert cache.fresh(seen)
    clock.now = NOW + 599
    assert cache.fresh(seen)
    clock.now = NOW + 600
    assert not cache.fresh(seen)


async def test_a_time_far_in_the_future_is_neither_fresh_nor_kept() -> None:
    store = MemoryStore()
    cache = urls([("memory", store)], clock=Clock(), revalidate_seconds=1000)
    seen = Seen("ab" * 32, '"v1"', NOW + 1001)
    assert not cache.fresh(seen)
    await cache.put(URL, seen)
    assert store.size_bytes == 0


async def test_past_its_time_to_live_it_is_kept_only_with_an_etag() -> None:
    clock, memory = Clock(), Clock()
    cache = urls([("memory", MemoryStore(clock=memory))], clock=clock)
    await cache.put("http://a/", Seen("ab" * 32, '"v1"', NOW))
    await cache.put("http://b/", Seen("ab" * 32, None, NOW))
    clock.now = memory.now = NOW + 601
    hit = await cache.get("http://a/")
    assert hit is not None
    assert not cache.fresh(hit[0])
    assert await cache.get("http://b/") is None
    clock.now = memory.now = NOW + 86_401
    assert await cache.get("http://a/") is None


async def test_what_a_store_kept_too_long_is_not_given_out() -> None:
    clock = Clock()
    cache = urls([("memory", MemoryStore(clock=Clock()))], clock=clock)
    await cache.put(URL, Seen("ab" * 32, None, NOW))
    clock.now = NOW + 601
    assert await cache.get(URL) is None


async def test_a_tier_above_gets_it_for_no_longer_than_is_left() -> None:
    clock, upper, lower = Clock(), Recording(), Recording()
    await urls([("redis", lower)], clock=clock).put(URL, Seen("ab" * 32, None, NOW))
    clock.now = NOW + 400
    await urls([("memory", upper), ("redis", lower)], clock=clock).get(URL)
    assert list(upper.seconds.values()) == [200]


async def test_zero_turns_it_off() -> None:
    store = MemoryStore()
    clock = Clock()
    await urls([("memory", store)], clock=clock).put(URL, Seen("ab" * 32, '"v1"', NOW))
    off = urls([("memory", store)], clock=clock, ttl_seconds=0)
    assert await off.get(URL) is None
    assert not off.fresh(Seen("ab" * 32, '"v1"', NOW))
    size = store.size_bytes
    await off.put("http://other/", Seen("ab" * 32, '"v1"', NOW))
    assert store.size_bytes == size


async def test_no_part_of_a_url_is_stored_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = Recording()
    cache = urls([("memory", store)], clock=Clock())
    await cache.put(URL, Seen("ab" * 32, '"v1"', NOW))
    await cache.get(URL)
    stored = repr(store.items) + caplog.text
    for part in (URL, "cdn.example", "cat.jpg", "token", "s3cr3t"):
        assert part not in stored
    assert cache.keyed_hash(URL) in stored


def test_the_keyed_hash_depends_on_the_key_and_the_url() -> None:
    one, other = (urls([], clock=Clock(), url_key=key) for key in (b"a" * 16, b"b" * 16))
    assert one.keyed_hash(URL) == one.keyed_hash(URL)
    assert len({one.keyed_hash(URL), other.keyed_hash(URL), one.keyed_hash(URL + "2")}) == 3


def test_the_keyed_hash_takes_any_text_that_json_can_write() -> None:
    cache = urls([], clock=Clock())
    assert cache.keyed_hash("http://a/\ud800") != cache.keyed_hash("http://a/\ud801")


def test_a_key_short_enough_to_guess_is_refused() -> None:
    with pytest.raises(ValueError, match="url_key has 5 bytes"):
        urls([], clock=Clock(), url_key=b"guess")


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"[" * 100_000,
        b'{"sha256": "short", "etag": null, "fetched_at": 1700000000.0}',
        b'{"url": "%(url)s", "sha256": "short", "etag": null, "fetched_at": 1700000000.0}',
        b'{"url": "%(url)s", "sha256": "%(sha)s", "etag": null, "fetched_at": NaN}',
        b'{"url": "%(url)s", "sha256": "%(sha)s", "etag": null, "fetched_at": "now"}',
        b'{"url": "%(url)s", "sha256": "%(sha)s", "etag": 7, "fetched_at": 1700000000.0}',
        b'{"url": "%(sha)s", "sha256": "%(sha)s", "etag": null, "fetched_at": 1700000000.0}',
    ],
)
async def test_what_is_not_about_this_url_is_deleted_and_counted_as_a_miss(planted: bytes) -> None:
    store = Recording()
    cache = urls([("memory", store)], clock=Clock())
    await cache.put(URL, Seen("ab" * 32, None, NOW))
    url, sha = cache.keyed_hash(URL).encode(), b"ab" * 32
    value = planted.replace(b"%(url)s", url).replace(b"%(sha)s", sha)
    await store.put([(key, sealed(value), 60) for key in store.items])
    before = rejected("memory")
    assert await cache.get(URL) is None
    assert rejected("memory") == before + 1
    assert store.size_bytes == 0
