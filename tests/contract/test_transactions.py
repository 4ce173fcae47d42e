"""What exactly once relies on, on the fake and on Apache Kafka: all of a transaction or nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
from kafka import KafkaAdminClient, KafkaProducer

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
)
from tests.fakes_broker import FakeTransactions
from worker.errors import Misconfigured
from worker.rebalance import kafka_offsets
from worker.seams import Aborted, Fenced, TooLarge, Transactions, Undelivered
from worker.topics import TopicReader, topic_limits
from worker.transactions import KafkaTransactions
from worker.types import Message, OffsetAndMetadata, TopicPartition

POLLS_BEFORE_THE_END = 20  # each takes a tenth of a second


class StartableTransactions(Transactions, Protocol):
    async def start(self) -> None: ...

    def fits(self, message: Message) -> bool: ...


class TransactionKit(Kit, Protocol):
    def transactions(self, transactional_id: str) -> StartableTransactions: ...

    async def values(self, topic: str) -> list[bytes | None]:
        """What a reader of committed data sees, partition by partition."""
        ...


class FakeTransactionKit(FakeKit):
    def transactions(self, transactional_id: str) -> StartableTransactions:
        return FakeTransactions(self._broker, transactional_id=transactional_id)

    async def values(self, topic: str) -> list[bytes | None]:
        return [record.value for record in self._broker.records(topic)]


class KafkaTransactionKit(KafkaKit):
    @property
    def address(self) -> str:
        return self._address

    def transactions(self, transactional_id: str, **settings: Any) -> KafkaTransactions:
        settings.setdefault("max_message_bytes", MAX_MESSAGE_BYTES)
        return KafkaTransactions(
            bootstrap=self.address,
            client_id="contract",
            transactional_id=transactional_id,
            **settings,
        )

    async def values(self, topic: str) -> list[bytes | None]:
        async with TopicReader(
            bootstrap=self.address,
            topic=topic,
            client_id="contract",
            options={"isolation_level": "read_committed"},
        ) as reader:
            records = [record async for record in reader.read_all()]
        return [record.value for record in sorted(records, key=lambda r: (r.partition, r.offset))]


@pytest.fixture(params=["fake", "apache"])
def kit(request: pytest.FixtureRequest) -> TransactionKit:
    if request.param == "fake":
        return FakeTransactionKit()
    return KafkaTransactionKit(request.getfixturevalue("apache_address"))


@pytest.fixture
def apache(apache_address: str) -> KafkaTransactionKit:
    return KafkaTransactionKit(apache_address)


@asynccontextmanager
async def started(transactions: StartableTransactions) -> AsyncIterator[StartableTransactions]:
    try:
        await transactions.start()
        yield transactions
    finally:
        await transactions.close()


@asynccontextmanager
async def requests(kit: Kit, count: int, group: str) -> AsyncIterator[tuple[Member, str]]:
    """A member of the group that has read so many records of a topic's one partition."""
    topic = await fresh_topic(kit, 1)
    publisher = kit.publisher()
    await publisher.start()
    await publish(publisher, topic, range(count))
    await publisher.close()
    async with member(kit, topic, group) as reader:
        await reader.read(count)
        yield reader, topic


def at(topic: str, offset: int, metadata: str = "") -> Mapping[TopicPartition, OffsetAndMetadata]:
    return {TopicPartition(topic, 0): OffsetAndMetadata(offset, metadata)}


def answers(topic: str, values: Sequence[int]) -> list[Message]:
    """For one key out of three, each."""
    return [Message(topic, b"%d" % (value % 3), b"%d" % value) for value in values]


async def test_messages_and_offsets_are_committed_together(kit: TransactionKit, group: str) -> None:
    verdicts = await fresh_topic(kit, 1)
    async with (
        requests(kit, 3, group) as (reader, topic),
        started(kit.transactions(group)) as transactions,
    ):
        first = TopicPartition(topic, 0)
        assert await reader.source.committed([first]) == {first: None}
        membership = reader.source.membership()
        await transactions.commit(answers(verdicts, [0, 1]), at(topic, 2, "note"), membership)
        committed = await reader.source.committed([first])
    assert committed == {first: OffsetAndMetadata(2, "note")}
    assert await kit.values(verdicts) == [b"0", b"1"]


async def test_a_new_member_starts_where_the_last_transaction_committed(
    kit: TransactionKit, group: str
) -> None:
    async with (
        requests(kit, 5, group) as (reader, topic),
        started(kit.transactions(group)) as transactions,
    ):
        await transactions.commit([], at(topic, 3), reader.source.membership())
    async with member(kit, topic, group) as after:
        assert [record.offset for record in await after.read(2)] == [3, 4]


async def test_many_messages_over_several_partitions_keep_the_order_of_each_key(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 3)
    async with (
        requests(kit, 1, group) as (reader, topic),
        started(kit.transactions(group)) as transactions,
    ):
        for first in (0, 500):
            messages = answers(verdicts, range(first, first + 500))
            await transactions.commit(messages, at(topic, 1), reader.source.membership())
    seen = [int(value or b"") for value in await kit.values(verdicts)]
    for key in range(3):
        assert [value for value in seen if value % 3 == key] == list(range(key, 1000, 3))


async def test_of_what_was_aborted_and_tried_again_one_copy_is_seen(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 1)
    async with (
        requests(kit, 3, group) as (reader, topic),
        started(kit.transactions(group)) as transactions,
    ):
        async with requests(kit, 1, f"{group}-left") as (left, _):
            of_the_past = left.source.membership()
        with pytest.raises(Aborted):
            await transactions.commit(answers(verdicts, [0, 1]), at(topic, 2), of_the_past)
        assert await kit.values(verdicts) == []
        membership = reader.source.membership()
        await transactions.commit(answers(verdicts, [0, 1]), at(topic, 2), membership)
        await transactions.commit(answers(verdicts, [2]), at(topic, 3), membership)
    assert await kit.values(verdicts) == [b"0", b"1", b"2"]


async def test_a_member_that_others_took_over_from_commits_nothing(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 1)
    async with requests(kit, 3, group) as (reader, topic):
        membership = reader.source.membership()
    async with (
        member(kit, topic, group) as heir,
        started(kit.transactions("zombie")) as zombie,
        started(kit.transactions(group)) as transactions,
    ):
        await heir.read(3)
        with pytest.raises(Aborted):
            await zombie.commit(answers(verdicts, [0, 1, 2]), at(topic, 3), membership)
        await transactions.commit(answers(verdicts, [7]), at(topic, 1), heir.source.membership())
        committed = await heir.source.committed([TopicPartition(topic, 0)])
    assert committed == at(topic, 1)
    assert await kit.values(verdicts) == [b"7"]


async def test_offsets_that_were_refused_do_not_come_with_the_next_transaction(
    kit: TransactionKit, group: str
) -> None:
    async with requests(kit, 3, group) as (reader, topic):
        of_the_past = reader.source.membership()
    other = await fresh_topic(kit, 1)
    async with (
        member(kit, topic, group) as heir,
        started(kit.transactions(group)) as transactions,
    ):
        await heir.read(3)
        with pytest.raises(Aborted):
            await transactions.commit([], at(topic, 2), of_the_past)
        await transactions.commit([], at(other, 1), heir.source.membership())
        first = TopicPartition(topic, 0)
        assert await heir.source.committed([first]) == {first: None}


async def test_who_is_in_no_group_at_the_moment_commits_nothing(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 1)
    async with requests(kit, 3, group) as (reader, topic):
        pass
    async with started(kit.transactions(group)) as transactions:
        with pytest.raises(Aborted):
            membership = reader.source.membership()
            await transactions.commit(answers(verdicts, [0]), at(topic, 1), membership)
    assert await kit.values(verdicts) == []


async def test_who_comes_with_the_same_transactional_id_fences_who_had_it(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 3)
    async with (
        requests(kit, 3, group) as (reader, topic),
        started(kit.transactions(group)) as before,
    ):
        membership = reader.source.membership()
        await before.commit(answers(verdicts, [0]), at(topic, 1), membership)
        async with started(kit.transactions(group)) as after:
            with pytest.raises(Fenced):  # so many, that it is found out while they are sent
                await before.commit(answers(verdicts, range(5000)), at(topic, 2), membership)
            await after.commit(answers(verdicts, [2]), at(topic, 2), membership)
    assert {*await kit.values(verdicts)} == {b"0", b"2"}


async def test_a_message_that_does_not_fit_is_refused_before_anything_is_sent(
    kit: TransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 1)
    small, large = answers(verdicts, [0])[0], Message(verdicts, b"key", bytes(MAX_MESSAGE_BYTES))
    async with (
        requests(kit, 3, group) as (reader, topic),
        started(kit.transactions(group)) as transactions,
    ):
        assert [transactions.fits(message) for message in (small, large)] == [True, False]
        membership = reader.source.membership()
        with pytest.raises(TooLarge, match=verdicts):
            await transactions.commit([small, large], at(topic, 2), membership)
        await transactions.commit([small], at(topic, 1), membership)
    assert await kit.values(verdicts) == [b"0"]


# ---------------------------------------------------------------- Apache Kafka alone


async def test_the_largest_message_that_fits_is_taken_by_a_topic_with_that_limit(
    apache: KafkaTransactionKit, group: str
) -> None:
    """And random bytes, which do not compress, are the worst case."""
    verdicts = await fresh_topic(apache, 1)
    (limit,) = (await topic_limits(apache.address, [verdicts])).values()
    async with (
        requests(apache, 1, group) as (reader, topic),
        started(apache.transactions(group, max_message_bytes=limit)) as transactions,
    ):
        noise = uuid.uuid4().bytes * (limit // 16)
        message = max(
            (Message(verdicts, b"key", noise[:size]) for size in range(limit - 200, limit)),
            key=lambda each: len(each.value or b"") if transactions.fits(each) else 0,
        )
        await transactions.commit([message], at(topic, 1), reader.source.membership())
    assert await apache.values(verdicts) == [message.value]


async def test_limits_are_those_of_the_topics_that_exist(apache: KafkaTransactionKit) -> None:
    plain, small = await fresh_topic(apache, 1), await small_topic(apache, 2000)
    limits = await topic_limits(apache.address, [plain, small, "no-such-topic"])
    assert limits == {plain: 1048588, small: 2000}


async def test_a_message_that_only_the_broker_finds_too_large_takes_its_transaction_with_it(
    apache: KafkaTransactionKit, group: str
) -> None:
    verdicts = await small_topic(apache, 2000)
    large = Message(verdicts, b"key", b"".join(uuid.uuid4().bytes for _ in range(200)))
    async with requests(apache, 3, group) as (reader, topic):
        membership = reader.source.membership()
        async with started(apache.transactions(group)) as transactions:
            with pytest.raises(Undelivered, match=r"max\.message\.bytes"):
                spoilt = [*answers(verdicts, [0]), large, *answers(verdicts, [1])]
                await transactions.commit(spoilt, at(topic, 3), membership)
        async with started(apache.transactions(group)) as transactions:
            await transactions.commit(answers(verdicts, [2]), at(topic, 1), membership)
        committed = await reader.source.committed([TopicPartition(topic, 0)])
    assert committed == at(topic, 1)
    assert await apache.values(verdicts) == [b"2"]


async def test_a_new_member_waits_for_the_transaction_that_the_last_one_left_open(
    apache: KafkaTransactionKit, group: str
) -> None:
    async with requests(apache, 5, group) as (reader, topic):
        left_open = KafkaProducer(bootstrap_servers=apache.address, transactional_id=group)
        left_open.init_transactions()
        left_open.begin_transaction()
        left_open.send_offsets_to_transaction(
            kafka_offsets(at(topic, 3)), reader.source.membership()
        )
    async with member(apache, topic, group) as heir:
        for _ in range(POLLS_BEFORE_THE_END):
            assert await heir.poll(1) == []
        left_open.commit_transaction()
        assert [record.offset for record in await heir.read(2)] == [3, 4]
    left_open.close()


async def test_starting_aborts_what_the_last_process_left_open(
    apache: KafkaTransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(apache, 1)
    async with requests(apache, 5, group) as (reader, topic):
        left_open = KafkaProducer(bootstrap_servers=apache.address, transactional_id=group)
        left_open.init_transactions()
        left_open.begin_transaction()
        left_open.send(verdicts, b"left open").get(PATIENCE_SECONDS)
        left_open.send_offsets_to_transaction(
            kafka_offsets(at(topic, 3)), reader.source.membership()
        )
    async with started(apache.transactions(group)), member(apache, topic, group) as heir:
        assert [record.offset for record in await heir.read(5)] == [0, 1, 2, 3, 4]
    left_open.close(timeout=0)
    assert await apache.values(verdicts) == []


async def test_settings_that_the_broker_refuses_are_a_misconfiguration(
    apache: KafkaTransactionKit, group: str
) -> None:
    hours = apache.transactions(group, transaction_timeout_seconds=5 * 3600.0)
    with pytest.raises(Misconfigured, match="transaction timeout"):
        async with started(hours):
            pass


async def small_topic(kit: KafkaTransactionKit, max_message_bytes: int) -> str:
    name = f"topic-{uuid.uuid4().hex}"
    admin = KafkaAdminClient(bootstrap_servers=kit.address)
    try:
        configs = {"max.message.bytes": str(max_message_bytes)}
        admin.create_topics({name: {"num_partitions": 1, "configs": configs}})
    finally:
        admin.close()
    return name
