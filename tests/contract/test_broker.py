"""What the pipeline relies on from source and publisher, on the fake and on a real broker."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import pytest
import structlog

from tests.fakes_broker import FakeBroker, FakePublisher, FakeSource
from worker.commit import Watermarks
from worker.embedded import embedded_broker
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher, Undelivered
from worker.rebalance import Drain, Forget
from worker.source import KafkaSource
from worker.topics import ensure_topics
from worker.types import Message, Publisher, Record, Source, TooLarge, TopicPartition

SESSION_SECONDS = 2.0  # the embedded broker lets a member join after half of it
POLLS_PAST_THE_SESSION = 30  # each takes a tenth of a second where time counts
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
    def __init__(self, address: str) -> None:
        self._address = address

    async def create(self, topic: str, partitions: int) -> None:
        await ensure_topics(self._address, {topic: partitions})

    def source(self, topic: str, group: str) -> StartableSource:
        return KafkaSource(
            bootstrap=self._address,
            topics=[topic],
            group=group,
            client_id="contract",
            session_timeout_seconds=SESSION_SECONDS,
        )

    def publisher(self) -> StartablePublisher:
        return KafkaPublisher(
            bootstrap=self._address, client_id="contract", max_message_bytes=MAX_MESSAGE_BYTES
        )


@pytest.fixture(params=["fake", "embedded"])
def kit(request: pytest.FixtureRequest) -> Kit:
    if request.param == "fake":
        return FakeKit()
    return KafkaKit(request.getfixturevalue("broker_address"))


@pytest.fixture
async def publisher(kit: Kit) -> AsyncIterator[Publisher]:
    publisher = kit.publisher()
    await publisher.start()
    yield publisher
    await publisher.close()


@pytest.fixture
async def topic(kit: Kit) -> str:
    """A topic of one partition."""
    return await fresh_topic(kit, 1)


async def fresh_topic(kit: Kit, partitions: int) -> str:
    name = f"topic-{uuid.uuid4().hex}"
    await kit.create(name, partitions)
    return name


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


class Member:
    """A member of a group that has joined; it keeps account as the pipeline does."""

    def __init__(self, source: StartableSource) -> None:
        self.source = source
        self.watermarks = Watermarks()
        self.drained: list[TopicPartition] = []
        self.forgotten: list[TopicPartition] = []

    async def drain(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.drained += partitions
        committable = self.watermarks.committable()
        return {each: committable[each] for each in partitions if each in committable}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        self.forgotten += partitions
        self.watermarks.forget(partitions)

    async def poll(self, room: int) -> list[Record]:
        records = list(await self.source.poll(room))
        for record in records:
            self.watermarks.polled(record)
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
        offsets = self.watermarks.committable()
        await self.source.commit(offsets)
        self.watermarks.committed(offsets)


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


async def test_a_message_is_read_back_with_key_value_headers_and_position(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    headers = (("traceparent", b"00-1-2-01"), ("empty", b""), ("traceparent", b"again"))
    await publisher.publish(Message(topic, b"first", b"1"))
    await publisher.publish(Message(topic, "schlüssel".encode(), b"\x00\xff", headers))
    async with member(kit, topic, group) as reader:
        first, second = await reader.read(2)
    assert (first.topic, first.partition, first.offset) == (topic, 0, 0)
    assert (first.key, first.value, first.headers) == (b"first", b"1", ())
    assert (second.partition, second.offset) == (0, 1)
    assert (second.key, second.value) == ("schlüssel".encode(), b"\x00\xff")
    assert second.headers == headers


async def test_a_message_without_a_value_is_read_back_as_a_tombstone(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publisher.publish(Message(topic, b"key", None))
    async with member(kit, topic, group) as reader:
        (record,) = await reader.read(1)
    assert (record.key, record.value) == (b"key", None)


async def test_a_large_message_is_read_back_whole(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    large = bytes(range(256)) * 3500
    await publisher.publish(Message(topic, b"key", large))
    async with member(kit, topic, group) as reader:
        (record,) = await reader.read(1)
    assert record.value == large


async def test_a_message_over_the_limit_is_refused_and_others_still_pass(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    with pytest.raises(TooLarge, match=topic):
        await publisher.publish(Message(topic, b"key", bytes(MAX_MESSAGE_BYTES + 1)))
    await publisher.publish(Message(topic, b"key", b"small"))
    async with member(kit, topic, group) as reader:
        (record,) = await reader.read(1)
    assert record.value == b"small"


async def test_every_record_comes_once_and_in_order_while_the_room_changes(
    kit: Kit, publisher: Publisher, group: str
) -> None:
    topic = await fresh_topic(kit, 3)
    await publish(publisher, topic, range(300))
    async with member(kit, topic, group) as reader:
        records = await reader.read(300, rooms=(7, 0, 1, 30, 2, 0, 50))
        assert await reader.poll(10) == []
    assert Counter(record.key for record in records) == Counter(b"%d" % n for n in range(300))
    offsets = defaultdict(list)
    for record in records:
        offsets[record.partition].append(record.offset)
    for of_partition in offsets.values():
        assert of_partition == list(range(len(of_partition)))


async def test_a_poll_never_returns_more_than_there_is_room_for(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(20))
    async with member(kit, topic, group) as reader:
        seen = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while seen < 20:
                records = await reader.poll(3)
                assert len(records) <= 3
                seen += len(records)


async def test_without_room_nothing_comes_and_the_membership_lasts(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(10))
    async with member(kit, topic, group) as reader:
        first = await reader.read(1)
        for _ in range(POLLS_PAST_THE_SESSION):
            assert await reader.poll(0) == []
        rest = await reader.read(9)
        await reader.commit([*first, *rest])
        assert reader.forgotten == []
    assert [record.offset for record in first + rest] == list(range(10))


async def test_a_new_member_starts_where_the_last_one_committed(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(10))
    async with member(kit, topic, group) as before:
        await before.commit(await before.read(4))
    async with member(kit, topic, group) as after:
        records = await after.read(6)
    assert [record.offset for record in records] == list(range(4, 10))


async def test_records_that_were_not_committed_are_read_again(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(6))
    async with member(kit, topic, group) as before:
        records = await before.read(6)
        await before.commit(records[:2] + records[3:])
    async with member(kit, topic, group) as after:
        again = await after.read(4)
    assert [record.offset for record in again] == [2, 3, 4, 5]


async def test_leaving_the_group_drains_commits_what_is_done_and_forgets(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(6))
    async with member(kit, topic, group) as before:
        for record in (await before.read(6))[:3]:
            before.watermarks.done(record)
    assert before.drained == before.forgotten == [TopicPartition(topic, 0)]
    async with member(kit, topic, group) as after:
        again = await after.read(3)
    assert [record.offset for record in again] == [3, 4, 5]


async def test_a_commit_for_a_partition_that_is_not_ours_is_left_out(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(2))
    async with member(kit, topic, group) as reader:
        await reader.read(2)
        not_ours = TopicPartition(topic, 17)
        await reader.source.commit({not_ours: 3, TopicPartition(topic, 0): 1})
    async with member(kit, topic, group) as after:
        (record,) = await after.read(1)
    assert record.offset == 1


async def test_lag_is_what_lies_between_the_last_record_read_and_the_end(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(10))
    async with member(kit, topic, group) as reader:
        await reader.read(4)
        assert reader.source.lag() == {TopicPartition(topic, 0): 6}
        await reader.read(6)
        assert reader.source.lag() == {TopicPartition(topic, 0): 0}


async def test_two_groups_each_read_everything(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(5))
    for each in (group, f"{group}-other"):
        async with member(kit, topic, each) as reader:
            assert [record.offset for record in await reader.read(5)] == list(range(5))


# ---------------------------------------------------------------- the real client alone


async def test_a_member_that_joins_takes_over_what_was_drained_and_nothing_is_lost_or_repeated(
    broker_address: str, group: str
) -> None:
    kit = KafkaKit(broker_address)
    topic = await fresh_topic(kit, 4)
    publisher = kit.publisher()
    await publisher.start()
    published, answered = 0, list[tuple[int, int]]()
    done = asyncio.Event()

    async def answer(reader: Member) -> None:
        while not done.is_set():
            records = await reader.poll(20)
            await reader.commit(records)
            answered.extend((record.partition, record.offset) for record in records)

    try:
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            member(kit, topic, group) as first,
            member(kit, topic, group) as second,
            asyncio.TaskGroup() as members,
        ):
            members.create_task(answer(first))
            while not answered:
                await publish(publisher, topic, range(20))
                published += 20
            members.create_task(answer(second))
            while len(second.source.lag()) < 2 or len(answered) < published:
                if len(answered) == published:
                    await publish(publisher, topic, range(20))
                    published += 20
                await asyncio.sleep(0.01)
            assert len(first.drained) == 2
            assert first.drained == first.forgotten
            done.set()
    finally:
        await publisher.close()
    assert len(answered) == len(set(answered)) == published


async def test_starting_waits_for_a_topic_that_is_missing_and_says_so(
    broker_address: str, group: str
) -> None:
    kit = KafkaKit(broker_address)
    topic = f"topic-{uuid.uuid4().hex}"
    source = kit.source(topic, group)
    reader = Member(source)
    with structlog.testing.capture_logs() as logs:
        starting = asyncio.create_task(source.start(drain=reader.drain, forget=reader.forget))
        try:
            await seen(logs, "topics_missing")
            await kit.create(topic, 1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await starting
        finally:
            starting.cancel()
            await source.close()
    assert next(line for line in logs if line["event"] == "topics_missing")["topics"] == [topic]


async def test_starting_waits_for_a_broker_that_is_away_and_says_so(group: str) -> None:
    nobody = "127.0.0.1:1"
    source = KafkaKit(nobody).source("topic", group)
    publisher = KafkaKit(nobody).publisher()
    reader = Member(source)
    with structlog.testing.capture_logs() as logs:
        starting = [
            asyncio.create_task(source.start(drain=reader.drain, forget=reader.forget)),
            asyncio.create_task(publisher.start()),
        ]
        try:
            await seen(logs, "broker_unreachable", client="consumer", bootstrap=nobody)
            await seen(logs, "broker_unreachable", client="producer", bootstrap=nobody)
        finally:
            for task in starting:
                task.cancel()
            await source.close()
            await publisher.close()
    assert all(line["retry_in_seconds"] > 0 for line in logs)


async def seen(logs: Collection[Mapping[str, object]], event: str, **fields: object) -> None:
    """Waits for a log line with this event and these fields."""
    wanted = {"event": event, **fields}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not any(wanted.items() <= line.items() for line in logs):
            await asyncio.sleep(0.01)


async def test_an_option_that_the_client_does_not_know_is_a_misconfiguration(
    broker_address: str, group: str
) -> None:
    options = {"sasl_mechanics": "PLAIN"}
    source = KafkaSource(
        bootstrap=broker_address, topics=["topic"], group=group, client_id="c", options=options
    )
    publisher = KafkaPublisher(bootstrap=broker_address, client_id="c", options=options)
    reader = Member(source)
    try:
        with pytest.raises(Misconfigured, match="sasl_mechanics"):
            await source.start(drain=reader.drain, forget=reader.forget)
        with pytest.raises(Misconfigured, match="sasl_mechanics"):
            await publisher.start()
    finally:
        await source.close()
        await publisher.close()


async def test_publishing_to_a_topic_that_does_not_exist_fails_and_does_not_create_it(
    broker_address: str,
) -> None:
    publisher = KafkaPublisher(
        bootstrap=broker_address, client_id="c", delivery_timeout_seconds=0.5
    )
    await publisher.start()
    try:
        for _ in range(2):
            with pytest.raises(Undelivered, match="no-such-topic"):
                await publisher.publish(Message("no-such-topic", b"key", b"value"))
    finally:
        await publisher.close()


async def test_a_cancelled_poll_ends_the_polling_for_it_may_have_taken_records(
    broker_address: str, group: str
) -> None:
    kit = KafkaKit(broker_address)
    topic = await fresh_topic(kit, 1)
    async with member(kit, topic, group) as reader:
        polling = asyncio.create_task(reader.poll(1))
        await asyncio.sleep(0)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        with pytest.raises(RuntimeError, match="can only close"):
            await reader.poll(1)


async def test_while_the_broker_is_away_polls_come_back_empty_and_leaving_takes_no_time(
    group: str,
) -> None:
    with embedded_broker() as address:
        kit = KafkaKit(address)
        topic = await fresh_topic(kit, 1)
        source = kit.source(topic, group)
        reader = Member(source)
        await source.start(drain=reader.drain, forget=reader.forget)
        while not source.lag():
            await reader.poll(1)
    try:
        for _ in range(POLLS_PAST_THE_SESSION):
            assert await reader.poll(1) == []
    finally:
        await source.close()
    assert reader.forgotten == [TopicPartition(topic, 0)]


async def test_closing_tells_who_still_waits_that_a_message_was_not_delivered() -> None:
    with embedded_broker() as address:
        topic = await fresh_topic(KafkaKit(address), 1)
        publisher = KafkaPublisher(
            bootstrap=address, client_id="contract", close_timeout_seconds=0.1
        )
        await publisher.start()
        await publisher.publish(Message(topic, b"key", b"value"))
    waiting = asyncio.create_task(publisher.publish(Message(topic, b"key", b"value")))
    await asyncio.sleep(0)
    await publisher.close()
    with pytest.raises(Undelivered, match=topic):
        await waiting
