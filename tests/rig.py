"""A pipeline on an in-memory broker, with what is around it, and processes that die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import FakeEncoder
from tests.fakes_broker import FakeBroker, FakePublisher, FakeSource, FakeTransactions
from tests.fakes_images import FakeDecoder, FakeFetcher
from tests.policy_factory import category, policy_bytes
from worker import telemetry
from worker.answers import Answerer, AnswerTopics
from worker.brake import Brake
from worker.cache import EmbeddingCache, UrlCache
from worker.delivery import AtLeastOnce, Delivery, ExactlyOnce
from worker.embedding_format import encode_embedding, parse_embedding
from worker.examine import Examiner
from worker.hosts import Hosts
from worker.judge import Judge
from worker.ledger import Ledger
from worker.pipeline import Limits, Pipeline
from worker.rejections import Rejections
from worker.reload import PolicyStore
from worker.retries import RetryPlan
from worker.schema import DEAD_LETTER_HEADER, DeadLetter, Verdict
from worker.solitude import Solitude
from worker.types import (
    Embedding,
    Fetched,
    Headers,
    Message,
    OffsetAndMetadata,
    Record,
    TopicPartition,
)

REQUESTS, VERDICTS, DEAD, RETRIES = "requests", "verdicts", "dead", "retries"
FIRST = TopicPartition(REQUESTS, 0)


class WatchedSource(FakeSource):
    """Remembers how much room each poll was given, and what each commit said."""

    def __init__(self, broker: FakeBroker, topic: str) -> None:
        super().__init__(broker, topics=[topic], group="g")
        self.rooms: list[int] = []
        self.commits: list[Mapping[TopicPartition, OffsetAndMetadata]] = []

    async def poll(self, room: int) -> Sequence[Record]:
        self.rooms.append(room)
        return await super().poll(room)

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        self.commits.append(offsets)
        await super().commit(offsets)


@dataclass
class Rig:
    """One process, as it were."""

    broker: FakeBroker
    source: WatchedSource
    publisher: FakePublisher
    transactions: FakeTransactions
    fetcher: FakeFetcher
    examiner: Examiner
    pipeline: Pipeline
    stop: asyncio.Event
    running: asyncio.Task[None]

    def committed(self, partition: TopicPartition = FIRST) -> int | None:
        """The offset to read next, as the group has it, once it was moved."""
        committed = self.broker.committed["g"].get(partition)
        return committed.offset if committed and committed.offset else None

    def note(self, partition: TopicPartition = FIRST) -> str:
        """What the group has committed beside it."""
        return self.broker.committed["g"][partition].metadata

    def verdicts(self) -> dict[str, Verdict]:
        """By request, the last one of each."""
        return {verdict.request_id: verdict for verdict in self.all_verdicts()}

    def all_verdicts(self) -> list[Verdict]:
        return [
            Verdict.model_validate_json(record.value or b"")
            for record in self.broker.records(VERDICTS)
        ]

    def dead_letters(self) -> list[DeadLetter]:
        return [letter_of(record) for record in self.broker.records(DEAD)]

    async def verdict(self, request_id: str) -> Verdict:
        await until(lambda: request_id in self.verdicts())
        return self.verdicts()[request_id]

    async def polled_on(self, times: int = 3) -> None:
        """The loop went round."""
        reached = len(self.source.rooms) + times
        await until(lambda: len(self.source.rooms) >= reached)

    async def stopped(self) -> None:
        self.stop.set()
        await self.running

    async def died(self) -> None:
        """As if it were killed: nothing is drained, nothing committed."""
        self.running.cancel()
        await asyncio.wait([self.running])
        self.broker.members["g"].remove(self.source)


@dataclass
class World:
    """What there is before a pipeline starts: a broker, images, and policies in ``folder``."""

    folder: Path
    parts: AsyncExitStack
    broker: FakeBroker = field(default_factory=FakeBroker)
    fetcher: FakeFetcher = field(default_factory=FakeFetcher)
    decoder: FakeDecoder = field(default_factory=FakeDecoder)

    def url(self, name: str) -> str:
        return f"http://images.test/{name}"

    def ask(
        self,
        name: str,
        body: bytes | Exception = b"red",
        *,
        hold: bool = False,
        key: bytes | None = None,
        headers: Headers = (),
        **fields: Any,
    ) -> Record:
        """Publish a request for an image that is served at a URL of its own."""
        url = self.url(name)
        self.fetcher.serves[url] = Fetched(body) if isinstance(body, bytes) else body
        if hold:
            self.fetcher.hold(url)
        request = {
            "schema_version": 1,
            "request_id": name,
            "item_id": name,
            **({} if "data" in fields else {"url": url}),
            **fields,
        }
        return self.send(key or name.encode(), json.dumps(request).encode(), headers)

    def send(self, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Record:
        return self.broker.append(Message(REQUESTS, key, value, headers))

    def release(self, name: str) -> None:
        self.fetcher.gates[self.url(name)].set()

    async def start(
        self,
        *,
        in_flight: int = 16,
        drain_seconds: float = 30.0,
        policies: Sequence[bytes] = (policy_bytes(category()),),
        publisher: type[FakePublisher] = FakePublisher,
        exactly_once: bool = False,
        retrying: bool = False,
        retries: RetryPlan | None = None,
        max_rejected_share: float = 1.0,
        max_deaths: int = 3,
        brake: Brake | None = None,
    ) -> Rig:
        """``retrying``: it reads the topic of retries, else that of requests."""
        encoder = FakeEncoder()
        paths = [self.folder / f"{number}.yaml" for number in range(len(policies))]
        for path, content in zip(paths, policies, strict=True):
            path.write_bytes(content)
        store = PolicyStore(paths, encoder)
        await store.load_all()
        examiner = Examiner(
            fetcher=self.fetcher,
            hosts=Hosts(slots=in_flight, share=1.0),
            decoder=self.decoder,
            encoder=encoder,
            embeddings=EmbeddingCache(
                [],
                dimension=encoder.info.dimension,
                ttl_seconds=60,
                encode=encode_embedding,
                parse=parse_embedding,
            ),
            urls=UrlCache([], url_key=b"k" * 32, ttl_seconds=60, revalidate_seconds=60),
            keep=_nowhere,
            images_in_work=in_flight,
            low_share=0.5,
            batch_rows=8,
            batch_wait_seconds=0,
            batches_in_flight=1,
        )
        self._background(examiner.run())
        source = WatchedSource(self.broker, RETRIES if retrying else REQUESTS)
        publishing, transactions = publisher(self.broker), FakeTransactions(self.broker)
        await transactions.start()
        ledger = Ledger(max_deaths=max_deaths)
        delivery: Delivery = (
            ExactlyOnce(transactions=transactions, source=source, ledger=ledger)
            if exactly_once
            else AtLeastOnce(publisher=publishing, source=source, ledger=ledger)
        )
        pipeline = Pipeline(
            lane="live",
            source=source,
            answerer=Answerer(
                judge=Judge(
                    examiner=examiner,
                    policies=store,
                    model=encoder.info,
                    worker="w",
                    brake=brake,
                ),
                publisher=publishing,
                topics=AnswerTopics(verdicts=VERDICTS, dead_letters=DEAD),
                retries=retries,
                retrying=retrying,
                request_bytes=100_000,
                worker="w",
            ),
            ledger=ledger,
            delivery=delivery,
            rejections=Rejections(share=max_rejected_share, window=4),
            solitude=Solitude(),
            limits=Limits(
                in_flight=in_flight, commit_interval_seconds=0.001, drain_seconds=drain_seconds
            ),
            wait=retries.seconds_until_due if retries and retrying else lambda _: 0.0,
        )
        await source.start(drain=pipeline.drain, forget=pipeline.forget)
        stop = asyncio.Event()
        running = self._background(pipeline.run(stop))
        return Rig(
            self.broker,
            source,
            publishing,
            transactions,
            self.fetcher,
            examiner,
            pipeline,
            stop,
            running,
        )

    def _background(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)

        async def ended() -> None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # a test that expects it has looked at it

        self.parts.push_async_callback(ended)
        assert isinstance(task, asyncio.Task)
        return task


async def _nowhere(_: Embedding) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def metric(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"imagewarden_{name}", labels) or 0.0


def letter_of(record: Record) -> DeadLetter:
    return DeadLetter.model_validate_json(dict(record.headers)[DEAD_LETTER_HEADER])
