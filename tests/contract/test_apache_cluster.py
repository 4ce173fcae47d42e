"""Brokers of Apache Kafka that are killed and come back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
import structlog

from tests.apache_kafka import KafkaCluster, apache_kafka, unavailable
from tests.contract.members import PATIENCE_SECONDS, KafkaKit, fresh_topic, member, publish, seen
from worker.topics import TopicReader
from worker.types import Message, OffsetAndMetadata, TopicPartition

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}"),
    pytest.mark.usefixtures("apache_address"),  # only where tests run on Apache Kafka at all
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with apache_kafka() as cluster:
        yield cluster


async def values(address: str, topic: str) -> list[bytes | None]:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        TopicReader(bootstrap=address, topic=topic, client_id="cluster") as reader,
    ):
        return sorted([record.value async for record in reader.read_all()])


async def test_a_broker_that_was_killed_comes_back_with_what_was_acknowledged(
    cluster: KafkaCluster,
) -> None:
    kit = KafkaKit(cluster.bootstrap)
    topic = await fresh_topic(kit, 3)
    publisher = kit.publisher()
    await publisher.start()
    try:
        await publish(publisher, topic, range(10))
        cluster.kill(0)
        with pytest.raises(ConnectionError):
            await values(cluster.bootstrap, topic)
        await asyncio.to_thread(cluster.start, 0)
        assert await values(cluster.bootstrap, topic) == [b"value %d" % n for n in range(10)]
        await publisher.publish(Message(topic, b"key", b"value again"))
        assert b"value again" in await values(cluster.bootstrap, topic)
    finally:
        await publisher.close()


async def test_a_commit_waits_for_a_broker_that_is_away_and_is_there_when_it_returns(
    cluster: KafkaCluster,
) -> None:
    kit = KafkaKit(cluster.bootstrap, session_seconds=30.0)  # longer than it is away
    topic = await fresh_topic(kit, 1)
    publisher = kit.publisher()
    await publisher.start()
    try:
        await publish(publisher, topic, range(6))
    finally:
        await publisher.close()
    async with member(kit, topic, f"group-{uuid.uuid4().hex}") as reader:
        records = await reader.read(4)
        cluster.kill(0)
        with structlog.testing.capture_logs() as logs:
            committing = asyncio.create_task(reader.commit(records))
            await seen(logs, "commit_retried")
        await asyncio.to_thread(cluster.start, 0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await committing
        partition = TopicPartition(topic, 0)
        assert await reader.source.committed([partition]) == {partition: OffsetAndMetadata(4)}


async def test_with_one_of_three_brokers_gone_requests_are_taken_and_committed() -> None:
    with apache_kafka(3) as cluster:
        kit = KafkaKit(cluster.bootstrap, session_seconds=30.0)  # longer than one is away
        topic = await fresh_topic(kit, 3)
        publisher = kit.publisher()
        await publisher.start()
        try:
            async with member(kit, topic, "group") as reader:
                for number in range(3):
                    cluster.kill(number)
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await publish(publisher, topic, range(10))
                        records = await reader.read(10)
                        await reader.commit(records)
                    assert {record.key for record in records} == {b"%d" % n for n in range(10)}
                    await asyncio.to_thread(cluster.start, number)
                partitions = [TopicPartition(topic, number) for number in range(3)]
                committed = await reader.source.committed(partitions)
        finally:
            await publisher.close()
    assert sum(at.offset for at in committed.values() if at is not None) == 30
