"""Whatever is put comes back bit for bit, and memory stays inside its bound."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TypeVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from worker.cache import EmbeddingCache, UrlCache
from worker.embedding_format import encode_embedding, parse_embedding
from worker.stores import ENTRY_OVERHEAD_BYTES, MemoryStore
from worker.types import Embedding, EmbeddingKey, Float16Rows, ImageFacts, Seen, digest_of

T = TypeVar("T")

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


def _unit(rows: NDArray[np.float64]) -> Float16Rows:
    rows[:, 0] += 2  # so that none is zero
    unit: Float16Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return unit


ROWS = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 32)),
    elements=st.floats(-1, 1),
).map(_unit)


@given(rows=ROWS, sha256=DIGESTS, frames=st.data())
async def test_an_embedding_comes_back_bit_for_bit(
    rows: Float16Rows, sha256: str, frames: st.DataObject
) -> None:
    of_rows = tuple(
        frames.draw(st.lists(st.integers(0, 99), min_size=len(rows), max_size=len(rows)))
    )
    facts = ImageFacts(sha256, "0" * 64, "image/gif", 640, 480, 12_345, 100, of_rows)
    key = EmbeddingKey(sha256, digest_of("model"), digest_of("plan"))
    cache = EmbeddingCache(
        [("memory", MemoryStore())],
        dimension=rows.shape[1],
        ttl_seconds=60,
        encode=encode_embedding,
        parse=parse_embedding,
    )
    await cache.put(Embedding(key, rows, facts))
    hit = await cache.get(key)
    assert hit is not None
    found = hit[0]
    assert (found.key, found.facts, found.rows.shape) == (key, facts, rows.shape)
    assert found.rows.tobytes() == rows.tobytes()


@st.composite
def damaged(draw: st.DrawFn, value: bytes) -> bytes:
    """What may have become of a value: cut, flipped, lengthened, mixed up, replaced."""
    kind = draw(st.sampled_from(["flipped", "cut", "longer", "inserted", "garbage", "nothing"]))
    at = draw(st.integers(0, len(value) - 1))
    some = draw(st.binary(min_size=1, max_size=8))
    match kind:
        case "flipped":
            return value[:at] + bytes([value[at] ^ (1 << at % 8)]) + value[at + 1 :]
        case "cut":
            return value[:at]
        case "longer":
            return value + some
        case "inserted":
            return value[:at] + some + value[at:]
        case "garbage":
            return draw(st.binary(max_size=200))
        case _:
            return value


@given(rows=ROWS, data=st.data())
async def test_a_value_is_believed_only_if_it_is_byte_for_byte_what_was_put(
    rows: Float16Rows, data: st.DataObject
) -> None:
    store = _Open()
    embeddings = EmbeddingCache(
        [("memory", store)],
        dimension=rows.shape[1],
        ttl_seconds=60,
        encode=encode_embedding,
        parse=parse_embedding,
    )
    urls = UrlCache(
        [("memory", store)],
        url_key=b"k" * 32,
        ttl_seconds=60,
        revalidate_seconds=60,
        clock=lambda: 0,
    )
    key = EmbeddingKey("ab" * 32, digest_of("model"), digest_of("plan"))
    facts = ImageFacts(key.sha256, "0" * 64, "image/gif", 640, 480, 9, 9, tuple(range(len(rows))))
    await embeddings.put(Embedding(key, rows, facts))
    await urls.put("http://a/", Seen(key.sha256, None, 0))
    before = dict(store.values)
    for name, value in before.items():
        store.values[name] = data.draw(damaged(value))
    after = dict(store.values)
    found, seen = await embeddings.get(key), await urls.get("http://a/")
    for name, answer in zip(before, (found, seen), strict=True):
        assert (answer is not None) == (after[name] == before[name])
        assert (name in store.values) == (answer is not None)  # what is not believed is deleted


class _Open:
    """``seams.Store`` over a dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return [self.values.get(key) for key in keys]

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        self.values |= {key: value for key, value, _ in items}

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.values.pop(key, None)

    async def close(self) -> None: ...


@given(
    url=st.text(),
    sha256=DIGESTS,
    etag=st.none() | st.text(),
    now=st.integers(0, 10**11),
    age=st.integers(-1000, 1000),
    ttl=st.integers(0, 1000),
    revalidate=st.integers(0, 1000),
)
async def test_what_a_url_served_comes_back_while_it_is_of_use_and_never_else(
    url: str, sha256: str, etag: str | None, now: int, age: int, ttl: int, revalidate: int
) -> None:
    cache = UrlCache(
        [("memory", MemoryStore())],
        url_key=b"k" * 32,
        ttl_seconds=ttl,
        revalidate_seconds=revalidate,
        clock=lambda: now,
    )
    seen = Seen(sha256, etag, now - age)
    kept = max(ttl, revalidate) if etag else ttl
    await cache.put(url, seen)
    hit = await cache.get(url)
    assert hit == ((seen, "memory") if ttl > 0 and abs(age) < kept else None)
    assert cache.fresh(seen) == (abs(age) < ttl)
    assert hit is None or cache.fresh(seen) or etag


class MemoryModel(RuleBasedStateMachine):
    """``MemoryStore`` against a plain record of the last value put under each key, and its end."""

    MAX_BYTES = 5 * ENTRY_OVERHEAD_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = MemoryStore(max_bytes=self.MAX_BYTES, clock=lambda: self.now)
        self.put_last: dict[str, tuple[bytes, float]] = {}

    keys = st.sampled_from("abcdefgh")
    values = st.integers(0, MAX_BYTES).map(bytes)

    @rule(items=st.lists(st.tuples(keys, values, st.integers(-1, 20)), max_size=4))
    def put(self, items: Sequence[tuple[str, bytes, int]]) -> None:
        _finish(self.store.put(items))
        self.put_last |= {key: (value, self.now + seconds) for key, value, seconds in items}

    @rule(wanted=st.lists(keys))
    def get(self, wanted: Sequence[str]) -> None:
        values = _finish(self.store.get(wanted))
        for key, value in zip(wanted, values, strict=True):
            if value is not None:
                expected, ends = self.put_last[key]
                assert value == expected
                assert self.now < ends

    @rule(unwanted=st.lists(keys, max_size=2))
    def delete(self, unwanted: Sequence[str]) -> None:
        _finish(self.store.delete(unwanted))
        for key in unwanted:
            self.put_last.pop(key, None)
        assert not any(_finish(self.store.get(unwanted)))

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_bound_holds(self) -> None:
        assert 0 <= self.store.size_bytes <= self.MAX_BYTES


def _finish(coroutine: Coroutine[object, None, T]) -> T:
    """The result of a coroutine that never waits, as those of ``MemoryStore`` do not."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waited")


def test_memory_gives_back_only_what_was_put_last_and_never_exceeds_its_bound() -> None:
    run_state_machine_as_test(MemoryModel)
