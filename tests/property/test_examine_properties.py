"""Whoever asks for what, and gives up when: everybody else is answered, and no place is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeEncoder
from tests.fakes_images import FakeDecoder, FakeFetcher
from worker.cache import EmbeddingCache, UrlCache
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import ErrorCode, Unexaminable
from worker.examine import Examiner
from worker.examined import Examined
from worker.hosts import Hosts
from worker.stores import MemoryStore
from worker.types import Embedding, Fetched, FramePlan

BODIES = (b"red", b"blue white", b"mauve")  # the last cannot be decoded


@dataclass(frozen=True)
class Asker:
    body: int
    url: int | None  #: several URLs serve the same body; None brings it along
    priority: int
    pause: int  #: turns of the event loop before it comes
    gives_up_after: int | None  #: turns


ASKERS = st.builds(
    Asker,
    body=st.integers(0, len(BODIES) - 1),
    url=st.none() | st.integers(0, 2),
    priority=st.integers(0, 2),
    pause=st.integers(0, 5),
    gives_up_after=st.none() | st.integers(0, 30),
)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _keep(_: Embedding) -> None:
    await asyncio.sleep(0)


@settings(deadline=None)
@given(
    askers=st.lists(ASKERS, max_size=15),
    places=st.integers(1, 3),
    low_share=st.sampled_from([0.1, 0.5, 1.0]),
    host_share=st.sampled_from([0.1, 1.0]),
)
async def test_everyone_who_stays_is_answered_and_no_place_is_lost(
    askers: list[Asker], places: int, low_share: float, host_share: float
) -> None:
    encoder, fetcher = FakeEncoder(), FakeFetcher()
    stores = [("memory", MemoryStore())]
    examiner = Examiner(
        fetcher=fetcher,
        hosts=Hosts(slots=places, share=host_share),
        decoder=FakeDecoder(),
        encoder=encoder,
        embeddings=EmbeddingCache(
            stores,  # type: ignore[arg-type]
            dimension=encoder.info.dimension,
            ttl_seconds=60,
            encode=encode_embedding,
            parse=parse_embedding,
        ),
        urls=UrlCache([], url_key=b"k" * 32, ttl_seconds=60, revalidate_seconds=60),
        keep=_keep,
        images_in_work=places,
        low_share=low_share,
        batch_rows=2,
        batch_wait_seconds=0,
        batches_in_flight=2,
    )

    async def ask(asker: Asker) -> Examined:
        body, plan = BODIES[asker.body], FramePlan()
        if asker.url is None:
            return await examiner.by_content(body, plan, priority=asker.priority)
        url = f"http://images.test/{asker.body}/{asker.url}"
        fetcher.serves[url] = Fetched(body)
        return await examiner.by_url(url, plan, priority=asker.priority)

    async def give_up(task: asyncio.Task[Examined], after: int) -> None:
        await turns(after)
        task.cancel()

    running = asyncio.create_task(examiner.run())
    tasks, givers_up = [], []
    for asker in askers:
        await turns(asker.pause)
        tasks.append(asyncio.create_task(ask(asker)))
        if asker.gives_up_after is not None:
            givers_up.append(asyncio.create_task(give_up(tasks[-1], asker.gives_up_after)))
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*givers_up)
        for asker, answer in zip(askers, answers, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                assert asker.gives_up_after is not None
            elif BODIES[asker.body] == b"mauve":
                assert isinstance(answer, Unexaminable)
                assert answer.code == ErrorCode.UNDECODABLE
            else:
                assert isinstance(answer, Examined)
        assert fetcher.most_active <= places
        # All places are there still, for whoever comes
        urls = [f"http://images.test/last/{number}" for number in range(places)]
        for number, url in enumerate(urls):
            fetcher.serves[url] = Fetched(b"green " * (number + 1))
        await asyncio.gather(*(examiner.by_url(url, FramePlan(), priority=2) for url in urls))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
