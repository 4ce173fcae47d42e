"""What broker suites are made of: brokers with what talks to them, and members of groups."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from tests.fakes_broker import FakeBroker, FakePublisher, FakeSource
from worker.broker import Options
from worker.commit import Watermarks
from worker.publish import KafkaPublisher
from worker.rebalance import Drain, Forget, Offsets
from worker.seams import Publisher, Source
from worker.source import KafkaSource
from worker.topics import ensure_topics
from worker.types import Message, OffsetAndMetadata, Record, TopicPartition

SESSION_SECONDS = 2.0  # the embedded broker lets a member join after half of it
PATIENCE_SECONDS = 60.0
MAX_MESSAGE_BYTES = 1024 * 1024


class StartableSource(Source, Protocol):
    async def start(self, *, drain: Drain, forget: Forget) -> None: ...


class StartablePublisher(Publisher, Protocol):
    async def start(self) -> None: ...


class Kit(Protocol):
    async def create(self, topic: str, partitions: int) -> None: ...

    def source(self, topic: str, group: str) -> StartableSource: ...

    def publisher(self) -> StartablePublisher: ...


class FakeKit:
    def __init__(self) -> None:
        self._broker = FakeBroker(max_message_bytes=MAX_MESSAGE_BYTES)

    async def create(self, topic: str, partitions: int) -> None:
        self._broker.create(topic, partitions)

    def source(self, topic: str, group: str) -> StartableSource:
        return FakeSource(self._broker, topics=[topic], group=group)

    def publisher(self) -> StartablePublisher:
        return FakePublisher(self._broker)


class KafkaKit:
    """``options`` are kafka-python's, for sources."""

    def __init__(
        self,
        address: str,
        *,
        session_seconds: float = SESSION_SECONDS,
        options: Options | None = None,
    ) -> None:
        self._address = address
        self._session_seconds = session_seconds
        self._options = options

    async def create(self, topic: str, partitions: int) -> None:
        await ensure_topics(self._address, {topic: partitions})

    def source(self, topic: str, group: str) -> StartableSource:
        return KafkaSource(
            bootstrap=self._address,
            topics=[topic],
            group=group,
            client_id="contract",
            session_timeout_seconds=self._session_seconds,
            options=self._options,
        )

    def publisher(self) -> StartablePublisher:
        return KafkaPublisher(
            bootstrap=self._address, client_id="contract", max_message_bytes=MAX_MESSAGE_BYTES
        )


async def fresh_topic(kit: Kit, partitions: int) -> str:
    name = f"topic-{uuid.uuid4().hex}"
    await kit.create(name, partitions)
    return name


class Member:
    """A member of a group that has joined; it keeps account as the pipeline does."""

    def __init__(self, source: StartableSource) -> None:
        self.source = source
        self.watermarks = Watermarks()
        self._first_polled: dict[TopicPartition, int] = {}
        self.drained: list[TopicPartition] = []
        self.forgotten: list[TopicPartition] = []

    async def drain(self, partitions: Collection[TopicPartition]) -> Offsets:
        self.drained += partitions
        return {each: at for each, at in self.committable().items() if each in partitions}

    def committable(self) -> Offsets:
        """Of the partitions of which anything was done."""
        watermarks = {each: self.watermarks.watermark(each) for each in self._first_polled}
        return {
            each: OffsetAndMetadata(offset)
            for each, offset in watermarks.items()
            if offset > self._first_polled[each]
        }

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        self.forgotten += partitions
        self.watermarks.forget(partitions)
        for each in partitions:
            self._first_polled.pop(each, None)

    async def poll(self, room: int) -> list[Record]:
        records = list(await self.source.poll(room))
        for record in records:
            self.watermarks.polled(record)
            self._first_polled.setdefault(record.topic_partition, record.offset)
        return records

    async def read(self, count: int, rooms: Iterable[int] = (100,)) -> list[Record]:
        """``count`` records, polled with ``rooms`` in turn and no more than the last one needs."""
        records: list[Record] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            for room in itertools.cycle(rooms):
                records += await self.poll(min(room, count - len(records)))
                if len(records) == count:
                    return records
        raise AssertionError("rooms must not be empty")

    async def commit(self, records: Iterable[Record]) -> None:
        for record in records:
            self.watermarks.done(record)
        await self.source.commit(self.committable())


@asynccontextmanager
async def member(kit: Kit, topic: str, group: str) -> AsyncIterator[Member]:
    source = kit.source(topic, group)
    joined = Member(source)
    try:
        await source.start(drain=joined.drain, forget=joined.forget)
        yield joined
    finally:
        await source.close()


async def publish(publisher: Publisher, topic: str, values: Iterable[int]) -> None:
    """In the order of ``values``, each under itself as the key."""
    messages = [Message(topic, key=b"%d" % each, value=b"value %d" % each) for each in values]
    await asyncio.gather(*(publisher.publish(message) for message in messages))


async def seen(logs: Collection[Mapping[str, object]], event: str, **fields: object) -> None:
    """Waits for a log line with this event and these fields."""
    wanted = {"event": event, **fields}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not any(wanted.items() <= line.items() for line in logs):
            await asyncio.sleep(0.01)
