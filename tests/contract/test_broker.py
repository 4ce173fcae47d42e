"""What the pipeline relies on from source and publisher, on the fake and on real brokers."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from kafka import TopicPartition as KafkaTopicPartition

from tests.contract.members import (
    MAX_MESSAGE_BYTES,
    PATIENCE_SECONDS,
    FakeKit,
    KafkaKit,
    Kit,
    Member,
    fresh_topic,
    member,
    publish,
    seen,
)
from worker.embedded import embedded_broker
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher, Undelivered
from worker.seams import Publisher, TooLarge
from worker.source import KafkaSource
from worker.types import Message, OffsetAndMetadata, TopicPartition

POLLS_PAST_THE_SESSION = 30  # each takes a tenth of a second where time counts


@pytest.fixture(params=["fake", "embedded", "apache"])
def kit(request: pytest.FixtureRequest) -> Kit:
    if request.param == "fake":
        return FakeKit()
    return KafkaKit(request.getfixturevalue(f"{request.param}_address"))


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


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "snappy", "zstd"])
async def test_messages_come_back_equal_in_every_compression(
    broker_address: str, group: str, compression: str
) -> None:
    kit = KafkaKit(broker_address)
    topic = await fresh_topic(kit, 1)
    of_text = [b'{"schema_version":1,"item_id":"%d"}' % n * 60 for n in range(40)]
    of_bytes = [hashlib.shake_256(b"%d" % n).digest(700 * n) for n in range(40)]
    values = [*of_text, *of_bytes, b"", None]
    publisher = KafkaPublisher(
        bootstrap=broker_address, client_id="c", linger_seconds=0.1, compression=compression
    )
    await publisher.start()
    try:
        messages = (Message(topic, b"%d" % n, value) for n, value in enumerate(values))
        await asyncio.gather(*map(publisher.publish, messages))
    finally:
        await publisher.close()
    async with member(kit, topic, group) as reader:
        records = await reader.read(len(values))
    assert {record.key: record.value for record in records} == {
        b"%d" % n: value for n, value in enumerate(values)
    }


async def test_a_message_over_the_limit_is_refused_and_others_still_pass(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    with pytest.raises(TooLarge, match=topic):
        await publisher.publish(Message(topic, b"key", bytes(MAX_MESSAGE_BYTES + 1)))
    await publisher.publish(Message(topic, b"key", b"small"))
    async with member(kit, topic, group) as reader:
        (record,) = await reader.read(1)
    assert record.value == b"small"


async def test_messages_asked_for_at_once_keep_their_order_past_one_that_is_refused(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    values = [b"0", b"1", bytes(MAX_MESSAGE_BYTES + 1), b"2", b"3"]
    ends = await asyncio.gather(
        *(publisher.publish(Message(topic, b"key", value)) for value in values),
        return_exceptions=True,
    )
    assert [isinstance(end, TooLarge) for end in ends] == [False, False, True, False, False]
    async with member(kit, topic, group) as reader:
        records = await reader.read(4)
    assert [record.value for record in records] == [b"0", b"1", b"2", b"3"]


async def test_closing_sends_what_was_asked_for_just_before(
    kit: Kit, topic: str, group: str
) -> None:
    publisher = kit.publisher()
    await publisher.start()
    publishing = asyncio.create_task(publisher.publish(Message(topic, b"key", b"last")))
    await asyncio.sleep(0)  # it asks
    await publisher.close()
    await publishing
    async with member(kit, topic, group) as reader:
        (record,) = await reader.read(1)
    assert record.value == b"last"


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
        await reader.source.commit(
            {not_ours: OffsetAndMetadata(3), TopicPartition(topic, 0): OffsetAndMetadata(1)}
        )
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


async def test_lag_grows_while_there_is_no_room_to_read(
    kit: Kit, publisher: Publisher, topic: str, group: str
) -> None:
    await publish(publisher, topic, range(10))
    async with member(kit, topic, group) as reader:
        await reader.read(4)
        for number in range(5):  # the embedded broker takes a batch for one record here
            await publish(publisher, topic, [number])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while reader.source.lag() != {TopicPartition(topic, 0): 11}:
                assert await reader.poll(0) == []


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
    # Not lost in the middle of it on a busy machine
    kit = KafkaKit(broker_address, session_seconds=6.0)
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


class Held(ThreadPoolExecutor):
    """Gives records only when it may."""

    def __init__(self) -> None:
        super().__init__(1)
        self.taken, self.may_give = threading.Event(), threading.Event()

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Future[Any]:
        def held() -> Any:
            if result := function(*args, **named):
                self.taken.set()
                self.may_give.wait(PATIENCE_SECONDS)
            return result

        return super().submit(held)


async def test_records_whose_partition_is_lost_while_they_are_on_their_way_do_not_arrive(
    broker_address: str, group: str
) -> None:
    kit = KafkaKit(broker_address)
    topic = await fresh_topic(kit, 1)
    publisher = kit.publisher()
    await publisher.start()
    async with member(kit, topic, group) as reader:
        await publish(publisher, topic, [1])
        await reader.read(1)
        source: Any = reader.source
        held = source._thread = Held()
        await publish(publisher, topic, [2])
        await publisher.close()
        while not held.taken.is_set():
            polling = asyncio.create_task(reader.poll(1))
            while not (polling.done() or held.taken.is_set()):
                await asyncio.sleep(0.01)
        network = source._consumer._coordinator._net
        lost = {KafkaTopicPartition(topic, 0)}
        await asyncio.to_thread(network.run, source._rebalances.on_partitions_lost, lost)
        held.may_give.set()
        assert await polling == []
        assert reader.watermarks.partitions() == []
        assert source.lag() == {}


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


async def test_nothing_is_published_once_a_publisher_is_closed() -> None:
    publisher = KafkaPublisher(bootstrap="localhost:1", client_id="contract")
    await publisher.close()
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError):
            await publisher.publish(Message("topic", b"key", b"value"))
