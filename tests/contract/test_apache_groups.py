"""Groups as Apache Kafka has them: rebalances that take their time, and members thrown out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import OffsetMetadataTooLargeError

from tests.contract.members import (
    PATIENCE_SECONDS,
    KafkaKit,
    Member,
    fresh_topic,
    member,
    publish,
)
from worker.types import OffsetAndMetadata, TopicPartition

SESSION_SECONDS = 10.0  # nobody is thrown out for being slow
OFFSET_METADATA_MAX_BYTES = 4096  # Kafka's default


@pytest.fixture
def kit(apache_address: str) -> KafkaKit:
    return KafkaKit(apache_address, session_seconds=SESSION_SECONDS)


async def filled(kit: KafkaKit, partitions: int, count: int) -> str:
    """A topic with so many records."""
    topic = await fresh_topic(kit, partitions)
    publisher = kit.publisher()
    await publisher.start()
    try:
        await publish(publisher, topic, range(count))
    finally:
        await publisher.close()
    return topic


@asynccontextmanager
async def polling(reader: Member) -> AsyncIterator[None]:
    """Takes part in rebalances, and takes no records."""

    async def poll() -> None:
        while True:
            await reader.poll(0)

    task = asyncio.create_task(poll())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_commit_is_tried_until_the_rebalance_is_over(
    apache_address: str, kit: KafkaKit, group: str
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    may_end.set()

    class Slow(CooperativeStickyAssignor):  # type: ignore[misc]
        def assign(self, *args: Any) -> Any:
            if not may_end.is_set():
                begun.set()
                may_end.wait(PATIENCE_SECONDS)
            return super().assign(*args)

    topic = await filled(kit, partitions=4, count=40)
    leading = KafkaKit(
        apache_address,
        session_seconds=SESSION_SECONDS,
        options={"partition_assignment_strategy": [Slow]},
    )
    async with asyncio.timeout(PATIENCE_SECONDS), AsyncExitStack() as parts:
        leader = await parts.enter_async_context(member(leading, topic, group))
        await leader.read(1)  # the first to join leads
        await parts.enter_async_context(polling(leader))
        reader = await parts.enter_async_context(member(kit, topic, group))
        [record] = await reader.read(1)

        parts.callback(may_end.set)
        may_end.clear()
        another = await parts.enter_async_context(member(kit, topic, group))
        await parts.enter_async_context(polling(another))
        while not begun.is_set():
            await reader.poll(0)
        committing = asyncio.create_task(reader.commit([record]))
        for _ in range(5):
            await reader.poll(0)
        assert not committing.done()
        may_end.set()
        await committing
        partition = record.topic_partition
        last = await reader.source.committed([partition])
    assert last == {partition: OffsetAndMetadata(record.offset + 1)}


async def test_partitions_of_a_member_thrown_out_are_forgotten_without_a_commit(
    apache_address: str, kit: KafkaKit, group: str
) -> None:
    topic = await filled(kit, partitions=1, count=6)
    partition = TopicPartition(topic, 0)
    async with asyncio.timeout(PATIENCE_SECONDS), member(kit, topic, group) as reader:
        await reader.commit(await reader.read(2))
        records = await reader.read(4)
        for record in records[:2]:
            reader.watermarks.done(record)
        await asyncio.to_thread(throw_out, apache_address, group)
        while not reader.forgotten:
            await reader.poll(0)
        assert reader.drained == []
        assert reader.forgotten == [partition]
        await reader.source.commit({partition: OffsetAndMetadata(6)})
        again = await reader.read(4)  # it has joined anew, and nobody else is there
        assert [record.offset for record in again] == [2, 3, 4, 5]


def throw_out(address: str, group: str) -> None:
    """All members, as when they were silent for longer than a session."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        members = admin.describe_groups([group])[group]["members"]
        admin.remove_group_members(group, [MemberToRemove(each["member_id"]) for each in members])
    finally:
        admin.close()


async def test_a_commit_that_has_to_find_its_coordinator_tells_what_became_of_it(
    kit: KafkaKit, group: str
) -> None:
    topic = await filled(kit, partitions=1, count=1)
    too_much = OffsetAndMetadata(1, "x" * (OFFSET_METADATA_MAX_BYTES + 1))
    async with member(kit, topic, group) as reader:
        await reader.read(1)
        reader.source._consumer._coordinator.coordinator_dead("as if its broker had died")
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(OffsetMetadataTooLargeError):
                await reader.source.commit({TopicPartition(topic, 0): too_much})
