from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.fakes import FakeEncoder
from tests.fakes_images import FakeDecoder, FakeFetcher, not_found
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import ErrorCode, Unexaminable
from worker.examine import Examined, Examiner
from worker.stores import MemoryStore
from worker.types import Embedding, EmbeddingKey, Fetched, Float32Rows, FramePlan, Pixels

PLAN = FramePlan()
URL = "http://images.test/a.jpg"
OTHER = "http://images.test/b.jpg"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class BlackIsNotANumber(FakeEncoder):
    def encode_images(self, pixels: Pixels) -> Float32Rows:
        rows = super().encode_images(pixels)
        rows[pixels.max(axis=(1, 2, 3)) == 0] = np.nan
        return rows


@dataclass
class Bench:
    """An examiner and the parts around it; ``kept`` holds what was published."""

    fetcher: FakeFetcher
    decoder: FakeDecoder
    encoder: FakeEncoder
    embeddings: EmbeddingCache
    examiner: Examiner
    kept: list[Embedding] = field(default_factory=list)

    def serve(self, url: str, body: bytes, etag: str | None = None) -> None:
        self.fetcher.serves[url] = Fetched(body, etag)

    async def cached(self, body: bytes) -> bool:
        key = EmbeddingKey(sha256(body), self.encoder.info.digest, PLAN.digest)
        return await self.embeddings.get(key) is not None

    @contextmanager
    def running(self) -> Iterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.examiner.run())
        try:
            yield task
        finally:
            task.cancel()


def bench_of(
    *,
    encoder: FakeEncoder | None = None,
    keep: Callable[[Embedding], Awaitable[None]] | None = None,
    images_in_work: int = 8,
    ttl_seconds: float = 600.0,
) -> Bench:
    encoder = encoder or FakeEncoder()
    stores: Stores = [("memory", MemoryStore())]
    embeddings = EmbeddingCache(
        stores,
        dimension=encoder.info.dimension,
        ttl_seconds=600,
        encode=encode_embedding,
        parse=parse_embedding,
    )
    kept: list[Embedding] = []

    async def published(embedding: Embedding) -> None:
        kept.append(embedding)

    fetcher, decoder = FakeFetcher(), FakeDecoder()
    examiner = Examiner(
        fetcher=fetcher,
        decoder=decoder,
        encoder=encoder,
        embeddings=embeddings,
        urls=UrlCache(
            stores, url_key=b"k" * 32, ttl_seconds=ttl_seconds, revalidate_seconds=86_400
        ),
        keep=keep or published,
        images_in_work=images_in_work,
        batch_rows=8,
        batch_wait_seconds=0,
        batches_in_flight=2,
    )
    return Bench(fetcher, decoder, encoder, embeddings, examiner, kept)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def fails(asking: Awaitable[Examined]) -> ErrorCode:
    with pytest.raises(Unexaminable) as failed:
        await asking
    return failed.value.code


# ---------------------------------------------------------------- once


async def test_url_in_flight_is_fetched_once() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    gate = bench.fetcher.hold(URL)
    with bench.running():
        askers = [asyncio.create_task(bench.examiner.by_url(URL, PLAN)) for _ in range(3)]
        await until(lambda: bench.fetcher.active == 1)
        gate.set()
        examined = await asyncio.gather(*askers)
    assert len(bench.fetcher.asked) == 1
    assert sorted(each.tier for each in examined) == ["in_flight", "in_flight", "none"]
    assert len({each.embedding.rows.tobytes() for each in examined}) == 1


async def test_content_under_two_urls_is_embedded_once() -> None:
    publishing = asyncio.Event()
    bench = bench_of(keep=lambda _: publishing.wait())  # type: ignore[arg-type, return-value]
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"red")
    with bench.running():
        askers = [asyncio.create_task(bench.examiner.by_url(url, PLAN)) for url in (URL, OTHER)]
        await until(lambda: len(bench.fetcher.asked) == 2 and bench.encoder.images == [1])
        for _ in range(20):  # the second one has its body by now and asks for the embedding
            await asyncio.sleep(0)
        publishing.set()
        examined = await asyncio.gather(*askers)
    assert bench.decoder.decoded == [b"red"]
    assert bench.encoder.images == [1]
    assert sorted(each.tier for each in examined) == ["in_flight", "none"]


async def test_each_plan_of_a_content_has_an_embedding_of_its_own() -> None:
    bench = bench_of()
    with bench.running():
        for plan in (PLAN, FramePlan(views="tiles")):
            assert (await bench.examiner.by_content(b"red", plan)).tier == "none"
    assert bench.decoder.decoded == [b"red", b"red"]


async def test_images_of_several_rows_get_their_own_rows_of_a_shared_batch() -> None:
    bench = bench_of()
    bodies = [b"red", b"green blue", b"white black red"]
    with bench.running():
        together = await asyncio.gather(*(bench.examiner.by_content(b, PLAN) for b in bodies))
    for body, examined in zip(bodies, together, strict=True):
        alone = bench.encoder.encode_texts(body.decode().split()).astype(np.float16)
        assert examined.embedding.rows.tobytes() == alone.tobytes()


# ---------------------------------------------------------------- caches


async def test_url_seen_a_moment_ago_is_not_fetched_again() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    with bench.running():
        first = await bench.examiner.by_url(URL, PLAN)
        second = await bench.examiner.by_url(URL, PLAN)
    assert len(bench.fetcher.asked) == 1
    assert (first.tier, second.tier) == ("none", "memory")
    assert first.embedding.rows.tobytes() == second.embedding.rows.tobytes()
    assert second.timings_ms == {}


async def test_content_seen_under_another_url_is_not_decoded_again() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"red")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        again = await bench.examiner.by_url(OTHER, PLAN)
    assert again.tier == "memory"
    assert bench.decoder.decoded == [b"red"]
    assert set(again.timings_ms) == {"fetch"}


async def test_url_that_changed_after_its_time_gets_the_new_content() -> None:
    bench = bench_of(ttl_seconds=1e-9)
    bench.serve(URL, b"red", "one")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        bench.serve(URL, b"blue", "two")
        changed = await bench.examiner.by_url(URL, PLAN)
    assert bench.fetcher.asked == [(URL, None), (URL, "one")]
    assert changed.embedding.key.sha256 == sha256(b"blue")


async def test_url_that_did_not_change_after_its_time_is_answered_from_the_cache() -> None:
    bench = bench_of(ttl_seconds=1e-9)
    bench.serve(URL, b"red", "one")
    with bench.running():
        first = await bench.examiner.by_url(URL, PLAN)
        second = await bench.examiner.by_url(URL, PLAN)
    assert bench.fetcher.asked == [(URL, None), (URL, "one")]
    assert second.tier == "memory"
    assert second.embedding.key == first.embedding.key
    assert bench.decoder.decoded == [b"red"]


async def test_server_is_not_asked_for_a_change_of_what_is_no_longer_cached() -> None:
    bench = bench_of(ttl_seconds=1e-9)
    bench.serve(URL, b"red", "one")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        await bench.examiner.by_url(URL, FramePlan(max_frames=1))
    assert bench.fetcher.asked == [(URL, None), (URL, None)]


# ---------------------------------------------------------------- the sha256 of a request


async def test_content_that_is_not_what_the_request_says_is_refused() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    wrong = sha256(b"blue")
    with bench.running():
        by_url = await fails(bench.examiner.by_url(URL, PLAN, sha256=wrong))
        by_content = await fails(bench.examiner.by_content(b"red", PLAN, sha256=wrong))
    assert by_url == by_content == ErrorCode.DIGEST_MISMATCH
    assert bench.decoder.decoded == []


async def test_content_that_is_what_the_request_says_is_taken() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    with bench.running():
        examined = await bench.examiner.by_url(URL, PLAN, sha256=sha256(b"red"))
    assert examined.embedding.key.sha256 == sha256(b"red")


async def test_url_known_to_have_served_something_else_is_fetched_for_a_sha256() -> None:
    bench = bench_of()
    bench.serve(URL, b"red", "one")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        bench.serve(URL, b"blue", "two")
        examined = await bench.examiner.by_url(URL, PLAN, sha256=sha256(b"blue"))
    assert examined.embedding.key.sha256 == sha256(b"blue")


async def test_unchanged_content_is_still_held_against_the_sha256() -> None:
    bench = bench_of()
    bench.serve(URL, b"red", "one")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        code = await fails(bench.examiner.by_url(URL, PLAN, sha256=sha256(b"blue")))
    assert code == ErrorCode.DIGEST_MISMATCH


# ---------------------------------------------------------------- what is kept


async def test_embedding_is_published_before_it_is_cached() -> None:
    publishing, published = asyncio.Event(), asyncio.Event()

    async def keep(_: Embedding) -> None:
        publishing.set()
        await published.wait()

    bench = bench_of(keep=keep)
    with bench.running():
        asking = asyncio.create_task(bench.examiner.by_content(b"red", PLAN))
        await publishing.wait()
        assert not await bench.cached(b"red")
        assert not asking.done()
        published.set()
        await asking
    assert await bench.cached(b"red")


async def test_embedding_that_could_not_be_published_is_not_cached() -> None:
    async def keep(_: Embedding) -> None:
        raise ConnectionError("no broker")

    bench = bench_of(keep=keep)
    with bench.running():
        with pytest.raises(ConnectionError):
            await bench.examiner.by_content(b"red", PLAN)
        assert not await bench.cached(b"red")


async def test_cached_embedding_is_not_published_again() -> None:
    bench = bench_of()
    with bench.running():
        await bench.examiner.by_content(b"red", PLAN)
        await bench.examiner.by_content(b"red", PLAN)
    assert len(bench.kept) == 1


async def test_embedding_that_is_not_finite_is_neither_published_nor_cached() -> None:
    bench = bench_of(encoder=BlackIsNotANumber())
    with bench.running():
        code = await fails(bench.examiner.by_content(b"red black", PLAN))
        assert not await bench.cached(b"red black")
        assert (await bench.examiner.by_content(b"red", PLAN)).tier == "none"
    assert code == ErrorCode.EMBEDDING_NOT_FINITE
    assert [embedding.key.sha256 for embedding in bench.kept] == [sha256(b"red")]


async def test_image_in_the_batch_of_one_that_is_not_finite_is_unharmed() -> None:
    bench = bench_of(encoder=BlackIsNotANumber())
    with bench.running():
        black, red = await asyncio.gather(
            bench.examiner.by_content(b"black", PLAN),
            bench.examiner.by_content(b"red", PLAN),
            return_exceptions=True,
        )
    assert isinstance(black, Unexaminable)
    assert isinstance(red, Examined)


# ---------------------------------------------------------------- bounds and failures


async def test_no_more_images_are_in_work_than_allowed() -> None:
    bench = bench_of(images_in_work=3)
    urls = [f"http://images.test/{number}" for number in range(10)]
    for url in urls:
        bench.serve(url, b"red")
        bench.fetcher.hold(url)
    with bench.running():
        askers = [asyncio.create_task(bench.examiner.by_url(url, PLAN)) for url in urls]
        await until(lambda: bench.fetcher.active == 3)
        for gate in bench.fetcher.gates.values():
            gate.set()
        await asyncio.gather(*askers)
    assert bench.fetcher.most_active == 3
    assert len(bench.fetcher.asked) == 10


async def test_image_that_is_being_published_is_still_in_work() -> None:
    publishing = asyncio.Event()
    bench = bench_of(images_in_work=1, keep=lambda _: publishing.wait())  # type: ignore[arg-type, return-value]
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"blue")
    with bench.running():
        askers = [asyncio.create_task(bench.examiner.by_url(url, PLAN)) for url in (URL, OTHER)]
        await until(lambda: bench.encoder.images == [1])
        assert bench.fetcher.asked == [(URL, None)]
        publishing.set()
        await asyncio.gather(*askers)
    assert bench.fetcher.asked == [(URL, None), (OTHER, None)]


async def test_failure_reaches_all_who_wait_and_the_next_asker_tries_anew() -> None:
    bench = bench_of()
    bench.fetcher.serves[URL] = not_found()
    gate = bench.fetcher.hold(URL)
    with bench.running():
        askers = [asyncio.create_task(bench.examiner.by_url(URL, PLAN)) for _ in range(3)]
        await until(lambda: bench.fetcher.active == 1)
        gate.set()
        codes = [await fails(asker) for asker in askers]
        assert codes == [ErrorCode.HTTP_CLIENT_ERROR] * 3
        bench.serve(URL, b"red")
        assert (await bench.examiner.by_url(URL, PLAN)).tier == "none"
    assert len(bench.fetcher.asked) == 2


async def test_image_that_failed_gives_its_place_back() -> None:
    bench = bench_of(images_in_work=1)
    with bench.running():
        for _ in range(3):
            assert await fails(bench.examiner.by_content(b"mauve", PLAN)) == ErrorCode.UNDECODABLE
        assert (await bench.examiner.by_content(b"red", PLAN)).tier == "none"


async def test_stopping_ends_what_still_runs() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    bench.fetcher.hold(URL)
    with bench.running() as running:
        asking = asyncio.create_task(bench.examiner.by_url(URL, PLAN))
        await until(lambda: bench.fetcher.active == 1)
        running.cancel()
        await asyncio.gather(running, asking, return_exceptions=True)
    assert asking.cancelled()
    assert bench.fetcher.active == 0
