"""Offsets that no record has: Apache Kafka's transactions and compaction leave gaps."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from tests.contract.members import PATIENCE_SECONDS, KafkaKit, fresh_topic, member, publish
from worker.publish import KafkaPublisher
from worker.topics import TopicReader
from worker.types import Message, OffsetAndMetadata, TopicPartition


@pytest.fixture
def kit(apache_address: str) -> KafkaKit:
    return KafkaKit(apache_address)


@pytest.fixture
def transactions(apache_address: str) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(
        bootstrap_servers=apache_address, transactional_id=f"transactions-{uuid.uuid4().hex}"
    )
    producer.init_transactions()
    yield producer
    producer.close()


def transaction(producer: KafkaProducer, topic: str, *values: bytes, commit: bool = True) -> None:
    producer.begin_transaction()
    for value in values:
        producer.send(topic, value)
    if commit:
        producer.commit_transaction()
    else:
        producer.flush()
        producer.abort_transaction()


@pytest.fixture
async def marked(kit: KafkaKit, transactions: KafkaProducer) -> str:
    """A topic of two transactions with one between them that was taken back. Markers are at the
    offsets 2, 4 and 7."""
    topic = await fresh_topic(kit, 1)
    await asyncio.to_thread(transaction, transactions, topic, b"0", b"1")
    await asyncio.to_thread(transaction, transactions, topic, b"3", commit=False)
    await asyncio.to_thread(transaction, transactions, topic, b"5", b"6")
    return topic


async def test_offsets_are_committed_over_the_markers_of_transactions(
    kit: KafkaKit, transactions: KafkaProducer, marked: str, group: str
) -> None:
    partition = TopicPartition(marked, 0)
    async with member(kit, marked, group) as reader:
        records = await reader.read(4)
        assert [(record.offset, record.value) for record in records] == [
            (0, b"0"),
            (1, b"1"),
            (5, b"5"),
            (6, b"6"),
        ]
        for record in (records[1], records[2], records[3]):
            reader.watermarks.done(record)
        assert reader.committable() == {}
        await reader.commit(records)
        assert await reader.source.committed([partition]) == {partition: OffsetAndMetadata(7)}
    async with member(kit, marked, group) as reader:
        await asyncio.to_thread(transaction, transactions, marked, b"8")
        (record,) = await reader.read(1)
    assert (record.offset, record.value) == (8, b"8")


async def test_nothing_lies_between_the_last_record_and_an_end_that_is_a_marker(
    kit: KafkaKit, marked: str, group: str
) -> None:
    async with member(kit, marked, group) as reader:
        await reader.read(4)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while reader.source.lag() != {TopicPartition(marked, 0): 0}:
                assert await reader.poll(1) == []


async def test_reading_all_ends_at_an_end_that_is_a_marker(
    apache_address: str, marked: str
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        TopicReader(
            bootstrap=apache_address,
            topic=marked,
            client_id="logs",
            options={"isolation_level": "read_committed"},
        ) as reader,
    ):
        values = [record.value async for record in reader.read_all()]
    assert values == [b"0", b"1", b"5", b"6"]


@pytest.fixture
def compacted(apache_address: str) -> str:
    """A topic whose log is compacted as soon as it can be."""
    topic = f"topic-{uuid.uuid4().hex}"
    configs = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
    }
    admin = KafkaAdminClient(bootstrap_servers=apache_address)
    try:
        admin.create_topics(
            {topic: {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True
        )
    finally:
        admin.close()
    return topic


async def offsets_left(address: str, topic: str) -> list[int]:
    async with TopicReader(bootstrap=address, topic=topic, client_id="logs") as reader:
        return [record.offset async for record in reader.read_all()]


async def test_offsets_are_committed_over_what_was_compacted_away(
    apache_address: str, kit: KafkaKit, compacted: str, group: str
) -> None:
    publisher = KafkaPublisher(bootstrap=apache_address, client_id="logs")
    await publisher.start()
    try:
        await publish(publisher, compacted, range(5))
        await publish(publisher, compacted, range(1, 5))
        async with asyncio.timeout(PATIENCE_SECONDS):
            # What is written last lies in a segment that is not compacted yet
            while 1 in (left := await offsets_left(apache_address, compacted)):
                await publisher.publish(Message(compacted, b"another", b"value"))
    finally:
        await publisher.close()
    assert left[0] == 0
    assert not {1, 2, 3, 4} & set(left)

    partition = TopicPartition(compacted, 0)
    async with member(kit, compacted, group) as reader:
        records = await reader.read(len(left))
        assert [record.offset for record in records] == left
        await reader.commit(records[:1])
        # The offset polled next: up to it nothing is left to be answered
        assert await reader.source.committed([partition]) == {partition: OffsetAndMetadata(left[1])}
        await reader.commit(records)
    assert left[-1] >= 9
    async with member(kit, compacted, group) as reader:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while reader.source.lag() != {partition: 0}:
                assert await reader.poll(10) == []
