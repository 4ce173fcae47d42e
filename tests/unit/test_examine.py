from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes import FakeEncoder
from tests.fakes_images import FakeDecoder, FakeFetcher, not_found
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import ErrorCode, Unexaminable
from worker.examine import Examiner
from worker.examined import Examined, Recognised
from worker.hosts import Hosts
from worker.lists import NO_LISTS, Listed, Lists
from worker.policy import Decision, HashList
from worker.seams import TooLarge
from worker.stores import MemoryStore
from worker.telemetry import REGISTRY
from worker.types import (
    Embedding,
    EmbeddingKey,
    Fetched,
    Float32Rows,
    FramePlan,
    Pixels,
    digest_of,
)

PLAN = FramePlan()
URL = "http://images.test/a.jpg"
OTHER = "http://images.test/b.jpg"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class BlackBecomes(FakeEncoder):
    """Gives black rows an embedding of ``number`` in every dimension."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        rows = super().encode_images(pixels)
        rows[_black(pixels)] = self.number
        return rows


class FailsOnBlackAndWhite(FakeEncoder):
    def encode_images(self, pixels: Pixels) -> Float32Rows:
        if _black(pixels).any() and (pixels == 255).all(axis=(1, 2, 3)).any():
            raise ZeroDivisionError
        return super().encode_images(pixels)


class Gated(FakeEncoder):
    """Each batch waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        rows = super().encode_images(pixels)
        assert self.gate.acquire(timeout=30)
        return rows


def _black(pixels: Pixels) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = pixels.max(axis=(1, 2, 3)) == 0
    return black


class Late(MemoryStore):
    """Says what it held when it was asked for ``late`` keys, but not before the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.late = "nothing"
        self.gate = asyncio.Event()

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        values = await super().get(keys)
        if any(key.startswith(self.late) for key in keys):
            await self.gate.wait()
        return values


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
    low_share: float = 0.5,
    hosts: Hosts | None = None,
    store: MemoryStore | None = None,
    ttl_seconds: float = 600.0,
) -> Bench:
    encoder = encoder or FakeEncoder()
    stores: Stores = [("memory", store or MemoryStore())]
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
        hosts=hosts or Hosts(slots=images_in_work, share=1.0),
        decoder=decoder,
        encoder=encoder,
        embeddings=embeddings,
        urls=UrlCache(
            stores, url_key=b"k" * 32, ttl_seconds=ttl_seconds, revalidate_seconds=86_400
        ),
        keep=keep or published,
        images_in_work=images_in_work,
        low_share=low_share,
        batch_rows=8,
        batch_wait_seconds=0,
        batches_in_flight=2,
    )
    return Bench(fetcher, decoder, encoder, embeddings, examiner, kept)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


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
        await settle()  # the second one has its body by now and asks for the embedding
        publishing.set()
        examined = await asyncio.gather(*askers)
    assert bench.decoder.decoded == [b"red"]
    assert bench.encoder.images == [1]
    assert sorted(each.tier for each in examined) == ["in_flight", "none"]


async def test_url_is_not_fetched_again_for_a_look_up_that_began_before_its_flight_landed() -> None:
    store = Late()
    bench = bench_of(store=store)
    bench.serve(URL, b"red")
    fetching = bench.fetcher.hold(URL)
    with bench.running():
        first = asyncio.create_task(bench.examiner.by_url(URL, PLAN))
        await until(lambda: bench.fetcher.active == 1)
        store.late = "url:"
        second = asyncio.create_task(bench.examiner.by_url(URL, PLAN))
        await settle()
        fetching.set()
        await first
        store.gate.set()
        assert (await second).tier == "in_flight"
    assert len(bench.fetcher.asked) == 1


@pytest.mark.parametrize("second_way", ["by_content", "by_url"])
async def test_content_is_not_embedded_again_for_a_look_up_that_began_before_its_flight_landed(
    second_way: str,
) -> None:
    store, publishing = Late(), asyncio.Event()
    bench = bench_of(store=store, keep=lambda _: publishing.wait())  # type: ignore[arg-type, return-value]
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"red")
    ways = {
        "by_content": lambda url: bench.examiner.by_content(b"red", PLAN),
        "by_url": lambda url: bench.examiner.by_url(url, PLAN),
    }
    with bench.running():
        first = asyncio.create_task(ways[second_way](URL))
        await until(lambda: bench.encoder.images == [1])
        store.late = "embedding:"
        second = asyncio.create_task(ways[second_way](OTHER))
        await settle()
        publishing.set()
        await first
        store.gate.set()
        assert (await second).tier == "in_flight"
    assert bench.decoder.decoded == [b"red"]


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


async def test_url_in_the_cache_is_answered_by_it_to_all_who_ask_at_once() -> None:
    bench = bench_of()
    bench.serve(URL, b"red")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        examined = await asyncio.gather(*(bench.examiner.by_url(URL, PLAN) for _ in range(3)))
    assert [each.tier for each in examined] == ["memory"] * 3


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


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (np.nan, ErrorCode.EMBEDDING_NOT_FINITE),
        (np.inf, ErrorCode.EMBEDDING_NOT_FINITE),
        (-np.inf, ErrorCode.EMBEDDING_NOT_FINITE),
        (1e6, ErrorCode.EMBEDDING_NOT_FINITE),  # infinite as float16
        (0.0, ErrorCode.EMBED_FAILED),
        (1.0, ErrorCode.EMBED_FAILED),
    ],
)
async def test_embedding_that_cannot_be_right_is_neither_used_nor_published_nor_cached(
    number: float, code: ErrorCode
) -> None:
    bench = bench_of(encoder=BlackBecomes(number))
    with bench.running():
        assert await fails(bench.examiner.by_content(b"red black", PLAN)) == code
        assert not await bench.cached(b"red black")
        assert (await bench.examiner.by_content(b"red", PLAN)).tier == "none"
    assert [embedding.key.sha256 for embedding in bench.kept] == [sha256(b"red")]


async def test_image_in_the_batch_of_one_that_is_not_finite_is_unharmed() -> None:
    bench = bench_of(encoder=BlackBecomes(np.nan))
    with bench.running():
        black, red = await asyncio.gather(
            bench.examiner.by_content(b"black", PLAN),
            bench.examiner.by_content(b"red", PLAN),
            return_exceptions=True,
        )
    assert isinstance(black, Unexaminable)
    assert isinstance(red, Examined)


async def test_image_in_the_batch_of_one_that_the_model_fails_on_is_unharmed() -> None:
    bench = bench_of(encoder=FailsOnBlackAndWhite())
    with bench.running():
        bad, red = await asyncio.gather(
            bench.examiner.by_content(b"black white", PLAN),
            bench.examiner.by_content(b"red", PLAN),
            return_exceptions=True,
        )
        assert not await bench.cached(b"black white")
    assert isinstance(bad, Unexaminable)
    assert bad.code == ErrorCode.EMBED_FAILED
    assert isinstance(red, Examined)


async def test_embedding_too_large_for_its_topic_is_used_once_and_not_cached() -> None:
    async def keep(_: Embedding) -> None:
        raise TooLarge("a message of 2000000 bytes")

    bench = bench_of(keep=keep)
    before = REGISTRY.get_sample_value("imagewarden_embeddings_too_large_total") or 0
    with bench.running():
        assert (await bench.examiner.by_content(b"red", PLAN)).tier == "none"
        assert not await bench.cached(b"red")
    assert REGISTRY.get_sample_value("imagewarden_embeddings_too_large_total") == before + 1


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


async def test_image_that_nobody_waits_for_any_more_gives_its_place_back() -> None:
    bench = bench_of(images_in_work=1)
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"blue")
    bench.fetcher.hold(URL)
    with bench.running():
        asking = asyncio.create_task(bench.examiner.by_url(URL, PLAN))
        await until(lambda: bench.fetcher.active == 1)
        asking.cancel()
        assert (await bench.examiner.by_url(OTHER, PLAN)).tier == "none"
        assert bench.fetcher.active == 0


# ---------------------------------------------------------------- live traffic and the rest


@pytest.mark.parametrize("priority", [1, 2])
async def test_all_that_is_not_live_holds_no_more_than_its_share(priority: int) -> None:
    bench = bench_of(images_in_work=4, low_share=0.3)
    urls = hold_all(bench, 10)
    bench.serve(URL, b"red")
    with bench.running():
        backfill = ask_all(bench, urls, priority=priority)
        await settle()
        assert bench.fetcher.active == 2  # 0.3 of 4, rounded up
        assert (await bench.examiner.by_url(URL, PLAN)).tier == "none"
        release_all(bench)
        await asyncio.gather(*backfill)


async def test_live_image_goes_before_those_that_waited_longer() -> None:
    bench = bench_of(images_in_work=1, low_share=1.0)
    urls = hold_all(bench, 4)
    with bench.running():
        askers = []
        for url, priority in zip(urls, (2, 2, 1, 0), strict=True):
            askers += ask_all(bench, [url], priority=priority)
            await settle()
        release_all(bench)
        await asyncio.gather(*askers)
    assert [url for url, _ in bench.fetcher.asked] == [urls[0], urls[3], urls[2], urls[1]]


async def test_live_image_goes_through_the_model_before_those_that_waited_for_it_longer() -> None:
    encoder = Gated()
    bench = bench_of(encoder=encoder, low_share=1.0)
    asking: list[asyncio.Task[Examined]] = []
    with bench.running():
        # two batches are in the model, the others wait
        for rows, priority in ((8, 0), (7, 0), (6, 2), (5, 0)):
            image = bench.examiner.by_content(b"red " * rows, PLAN, priority=priority)
            asking.append(asyncio.create_task(image))
            await until(lambda: len(bench.decoder.decoded) == len(asking))
            await settle()
        await until(lambda: len(encoder.images) == 2)
        encoder.gate.release()
        await until(lambda: len(encoder.images) == 3)
        encoder.gate.release(3)
        await asyncio.gather(*asking)
    assert encoder.images == [8, 7, 5, 6]


async def test_live_image_from_a_host_that_a_backfill_is_busy_with_is_fetched_at_once() -> None:
    bench = bench_of(images_in_work=8, low_share=0.25, hosts=Hosts(slots=8, share=0.5))
    urls = hold_all(bench, 20)
    bench.serve(URL, b"red")
    with bench.running():
        backfill = ask_all(bench, urls, priority=2)
        await settle()
        assert (await bench.examiner.by_url(URL, PLAN)).tier == "none"
        release_all(bench)
        await asyncio.gather(*backfill)


def hold_all(bench: Bench, count: int) -> list[str]:
    """URLs that serve pictures of their own once they are released."""
    urls = [f"http://images.test/held/{number}" for number in range(count)]
    for number, url in enumerate(urls):
        bench.serve(url, b"red " * (number + 1))
        bench.fetcher.hold(url)
    return urls


def release_all(bench: Bench) -> None:
    for gate in bench.fetcher.gates.values():
        gate.set()


def ask_all(
    bench: Bench, urls: Sequence[str], *, priority: int = 0
) -> list[asyncio.Task[Examined]]:
    return [
        asyncio.create_task(bench.examiner.by_url(url, PLAN, priority=priority)) for url in urls
    ]


# ---------------------------------------------------------------- hosts


async def test_host_that_never_answers_holds_up_no_image_of_the_others() -> None:
    hosts = Hosts(slots=8, share=0.5, silence_seconds=0.01, breaker_seconds=3600)
    bench = bench_of(images_in_work=8, hosts=hosts)
    dead = [f"http://dead.test/{number}" for number in range(50)]
    alive = [f"http://alive{number % 5}.test/{number}" for number in range(50)]
    for url in dead:
        bench.fetcher.hold(url)
    for number, url in enumerate(alive):
        bench.serve(url, b"red " * (number + 1))
    with bench.running():
        of_dead = ask_all(bench, dead)
        await until(lambda: bench.fetcher.active == 4)
        examined = await asyncio.gather(*ask_all(bench, alive))
        assert [each.tier for each in examined] == ["none"] * 50
        await until(lambda: sum(task.done() for task in of_dead) == 46)
        assert bench.fetcher.active == 4  # these have a place until the fetcher's own deadline
        for error in [task.exception() for task in of_dead if task.done()]:
            assert isinstance(error, Unexaminable)
            assert (error.code, error.retryable) == (ErrorCode.HOST_UNAVAILABLE, True)


async def test_fetcher_is_told_that_another_attempt_at_a_silent_host_is_worth_nothing() -> None:
    bench = bench_of(hosts=Hosts(slots=2, share=0.5, silence_seconds=0.01, breaker_seconds=3600))
    bench.fetcher.hold(URL)
    with bench.running():
        downloading, waiting = ask_all(bench, [URL, f"{URL}?too"])
        await until(lambda: bench.fetcher.active == 1)
        assert bench.fetcher.worth_retrying[URL]()
        assert await fails(waiting) == ErrorCode.HOST_UNAVAILABLE
        assert not bench.fetcher.worth_retrying[URL]()
        downloading.cancel()


async def test_place_of_a_host_is_free_as_soon_as_the_download_has_ended() -> None:
    publishing = asyncio.Event()
    bench = bench_of(
        keep=lambda _: publishing.wait(),  # type: ignore[arg-type, return-value]
        hosts=Hosts(slots=8, share=0.01),
    )
    bench.serve(URL, b"red")
    bench.serve(OTHER, b"blue")
    with bench.running():
        askers = ask_all(bench, [URL, OTHER])
        await until(lambda: len(bench.fetcher.asked) == 2)
        publishing.set()
        await asyncio.gather(*askers)


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


# ---------------------------------------------------------------- lists of hashes

HASH = "0f" * 32


def lists(action: Decision = Decision.BLOCK, *, of: str = HASH, id: str = "known") -> Lists:
    return Lists([HashList(id, action, 31, "f", digest_of([of]), frozenset({of}))])


def listing_bench(**options: Any) -> Bench:
    """Of a bench whose red image has ``HASH``."""
    bench = bench_of(**options)
    bench.decoder.hashes[b"red"] = HASH
    bench.serve(URL, b"red")
    return bench


async def test_image_on_a_list_is_recognised_and_the_model_is_not_asked() -> None:
    bench = listing_bench()
    with bench.running():
        outcome = await bench.examiner.by_url(URL, PLAN, lists=lists())
    assert isinstance(outcome, Recognised)
    assert outcome.listed == Listed("known", Decision.BLOCK, 0)
    assert outcome.facts.sha256 == sha256(b"red")
    assert outcome.tier == "none"
    assert outcome.timings_ms.keys() == {"fetch", "decode"}
    assert (bench.encoder.images, bench.kept) == ([], [])
    assert not await bench.cached(b"red")


async def test_image_on_no_list_is_examined() -> None:
    bench = listing_bench()
    with bench.running():
        outcome = await bench.examiner.by_url(URL, PLAN, lists=lists(of="f0" * 32))
    assert isinstance(outcome, Examined)


async def test_image_whose_embedding_is_cached_is_recognised_by_what_is_cached() -> None:
    bench = listing_bench()
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        by_url = await bench.examiner.by_url(URL, PLAN, lists=lists())
        by_content = await bench.examiner.by_content(b"red", PLAN, lists=lists())
    for outcome in (by_url, by_content):
        assert isinstance(outcome, Recognised)
        assert outcome.tier == "memory"
    assert (len(bench.fetcher.asked), len(bench.decoder.decoded)) == (1, 1)


async def test_image_that_was_cached_without_a_hash_is_recognised_all_the_same() -> None:
    bench = listing_bench()
    bench.decoder.hashing = False
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        bench.decoder.hashing = True
        outcome = await bench.examiner.by_url(URL, PLAN, lists=lists())
    assert isinstance(outcome, Recognised)


async def test_image_too_plain_for_a_hash_is_cached_for_those_with_lists_too() -> None:
    bench = listing_bench()
    bench.serve(OTHER, b"blue")
    with bench.running():
        await bench.examiner.by_url(OTHER, PLAN)
        outcome = await bench.examiner.by_url(OTHER, PLAN, lists=lists())
    assert isinstance(outcome, Examined)
    assert outcome.tier == "memory"
    assert bench.decoder.decoded == [b"blue"]


async def test_animation_that_begins_with_an_allowed_image_is_examined() -> None:
    bench = bench_of()
    bench.decoder.hashes[b"red blue"] = HASH
    with bench.running():
        for _ in range(2):  # the second time from the cache
            outcome = await bench.examiner.by_content(
                b"red blue", PLAN, lists=lists(Decision.ALLOW)
            )
            assert isinstance(outcome, Examined)


async def test_unchanged_content_is_recognised_by_what_is_cached() -> None:
    bench = listing_bench(ttl_seconds=1e-9)
    bench.serve(URL, b"red", "one")
    with bench.running():
        await bench.examiner.by_url(URL, PLAN)
        outcome = await bench.examiner.by_url(URL, PLAN, lists=lists())
    assert isinstance(outcome, Recognised)
    assert bench.fetcher.asked == [(URL, None), (URL, "one")]
    assert len(bench.decoder.decoded) == 1


async def test_those_who_ask_at_once_with_other_lists_get_each_what_theirs_say() -> None:
    bench = listing_bench()
    gate = bench.fetcher.hold(URL)
    wishes = [lists(), lists(Decision.ALLOW), NO_LISTS, lists()]
    with bench.running():
        asking = [
            asyncio.create_task(bench.examiner.by_url(URL, PLAN, lists=wish)) for wish in wishes
        ]
        await settle()
        gate.set()
        outcomes = await asyncio.gather(*asking)
        inline = await asyncio.gather(
            *(bench.examiner.by_content(b"blue", PLAN, lists=wish) for wish in wishes)
        )
    said = [one.listed.action if isinstance(one, Recognised) else None for one in outcomes]
    assert said == [Decision.BLOCK, Decision.ALLOW, None, Decision.BLOCK]
    assert len(bench.fetcher.asked) == 3  # equal lists are answered together
    assert [outcome.tier for outcome in outcomes].count("in_flight") == 1
    assert all(isinstance(one, Examined) for one in inline)


async def test_recognised_image_gives_its_place_back() -> None:
    bench = listing_bench(images_in_work=1)
    with bench.running():
        for _ in range(3):
            await bench.examiner.by_url(URL, PLAN, lists=lists())
