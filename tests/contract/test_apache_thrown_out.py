"""Members that Apache Kafka threw out of their group: what they had is no longer theirs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from tests.contract.members import (
    PATIENCE_SECONDS,
    KafkaKit,
    Member,
    fresh_topic,
    member,
    publish,
)
from worker.types import OffsetAndMetadata, TopicPartition

SESSION_SECONDS = 30.0  # nobody is thrown out for being slow
PARTITIONS = 4
RECORDS = 40


@pytest.fixture
def kit(apache_address: str) -> KafkaKit:
    return KafkaKit(apache_address, session_seconds=SESSION_SECONDS)


@pytest.fixture
async def topic(kit: KafkaKit) -> str:
    topic = await fresh_topic(kit, PARTITIONS)
    publisher = kit.publisher()
    await publisher.start()
    try:
        await publish(publisher, topic, range(RECORDS))
    finally:
        await publisher.close()
    return topic


def throw_out(address: str, group: str, reader: Member) -> None:
    """As when it was silent for longer than a session."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        id = reader.source._consumer.group_metadata().member_id  # type: ignore[attr-defined]
        admin.remove_group_members(group, [MemberToRemove(id)])
    finally:
        admin.close()


@asynccontextmanager
async def polling(*readers: Member) -> AsyncIterator[None]:
    """Takes part in rebalances, and takes no records."""
    stop = asyncio.Event()

    async def poll(reader: Member) -> None:
        while not stop.is_set():
            await reader.poll(0)

    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(poll(reader))
        yield
        stop.set()


def owned(reader: Member) -> set[TopicPartition]:
    assignment = reader.source._consumer.assignment()  # type: ignore[attr-defined]
    return {TopicPartition(*each) for each in assignment}


def rejoining(reader: Member) -> bool:
    return bool(reader.source._consumer._coordinator.rejoining)  # type: ignore[attr-defined]


def asks_to_join(reader: Member) -> bool:
    """A request is on its way, and comes to its end without polls."""
    task = reader.source._consumer._coordinator._join_task  # type: ignore[attr-defined]
    return task is not None and not task.is_done


async def shared(one: Member, other: Member) -> None:
    """Until each has half of the partitions."""
    while not (len(owned(one)) == len(owned(other)) == PARTITIONS // 2):
        await asyncio.sleep(0.01)


class Watching(CooperativeStickyAssignor):  # type: ignore[misc]
    """Keeps what members claim to own, whenever it assigns."""

    def __init__(self) -> None:
        super().__init__()
        CLAIMS.clear()

    def assign(self, cluster: Any, members: Any) -> Any:
        CLAIMS.append(
            Counter(
                TopicPartition(topic.topic, partition)
                for member in members
                for topic in member.metadata.owned_partitions
                for partition in topic.partitions
            )
        )
        return super().assign(cluster, members)


CLAIMS: list[Counter[TopicPartition]] = []


async def test_one_that_joins_again_claims_nothing_that_another_works_on(
    apache_address: str, kit: KafkaKit, group: str, topic: str
) -> None:
    leading = KafkaKit(
        apache_address,
        session_seconds=SESSION_SECONDS,
        options={"partition_assignment_strategy": [Watching]},
    )
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        member(kit, topic, group) as lost,
        member(leading, topic, group) as other,
    ):
        await lost.read(1)  # it owns all
        await asyncio.to_thread(throw_out, apache_address, group, lost)
        records = await other.read(RECORDS)  # and so it leads
        for record in records:
            other.watermarks.done(record)  # and not committed yet
        async with polling(lost, other):
            await shared(lost, other)
        assert [claim for claims in CLAIMS for claim, count in claims.items() if count > 1] == []
        assert any(CLAIMS)
        # All was committed before any of it was given up, so nothing is read again
        for _ in range(10):
            assert await lost.poll(10) == []


async def test_one_thrown_out_while_it_waits_to_join_is_told_of_its_loss(
    apache_address: str, kit: KafkaKit, group: str, topic: str
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        member(kit, topic, group) as lost,
        member(kit, topic, group) as other,
    ):
        async with polling(lost, other):
            await shared(lost, other)
        await other.poll(0)  # a poll that was under way has ended
        while asks_to_join(other):
            await lost.poll(0)
        before = owned(lost)
        lost.drained.clear()
        lost.forgotten.clear()
        async with member(kit, topic, group) as third, polling(lost, third):
            # It waits for the other one, which does not poll
            while not rejoining(lost):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(throw_out, apache_address, group, lost)
            while not lost.forgotten:
                await asyncio.sleep(0.01)
            assert set(lost.forgotten) == before
            assert lost.drained == []


async def test_join_that_was_begun_for_nothing_comes_to_an_end(
    kit: KafkaKit, topic: str, group: str
) -> None:
    async with member(kit, topic, group) as reader:
        source: Any = reader.source
        coordinator = source._consumer._coordinator
        while len(source._consumer.assignment()) < PARTITIONS:
            await reader.poll(0)
        # as when a topic looks otherwise at one poll, and as before at the next
        before, coordinator._metadata_snapshot = coordinator._metadata_snapshot, {topic: {0}}
        await source._call(coordinator.ensure_active_group, 1)
        coordinator._metadata_snapshot = before
        async with asyncio.timeout(PATIENCE_SECONDS):
            await source.commit({TopicPartition(topic, 0): OffsetAndMetadata(0)})
