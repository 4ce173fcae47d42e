"""What a consumer does while one of the brokers of Apache Kafka is away."""

from __future__ import annotations

import asyncio

import pytest

from tests.apache_kafka import apache_kafka, unavailable
from tests.contract.members import PATIENCE_SECONDS, KafkaKit, fresh_topic, member
from worker.types import OffsetAndMetadata, TopicPartition

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}"),
    pytest.mark.usefixtures("apache_address"),  # only where tests run on Apache Kafka at all
]

#: Any one of three brokers is asked for the topics, so that so many are enough to ask all.
STARTS = 15
#: It takes about 6 s, and without a pause hundreds of looks a second.
MOST_LOOKS = 200


async def test_a_consumer_starts_although_the_broker_it_asks_has_just_gone() -> None:
    # So that the others still name it to those who ask
    properties = {"broker.session.timeout.ms": "60000"}
    with apache_kafka(3, properties=properties) as cluster:
        kit = KafkaKit(cluster.bootstrap)
        topic = await fresh_topic(kit, 1)
        cluster.kill(0)
        for number in range(STARTS):
            async with member(kit, topic, f"group-{number}"):
                pass


async def test_a_coordinator_that_has_gone_is_looked_for_without_haste(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with apache_kafka(3) as cluster:
        kit = KafkaKit(cluster.bootstrap, session_seconds=30.0)
        topic = await fresh_topic(kit, 1)
        async with member(kit, topic, "group") as reader:
            consumer = reader.source._consumer  # type: ignore[attr-defined]
            while not consumer.assignment():
                await reader.poll(0)
            cluster.kill(int(consumer._coordinator.coordinator_id.removeprefix("coordinator-")))
            # The brokers name the one that has gone until they have missed it for a while
            async with asyncio.timeout(PATIENCE_SECONDS):
                await reader.source.commit({TopicPartition(topic, 0): OffsetAndMetadata(0)})
        looked = [line for line in caplog.messages if "Marking the coordinator dead" in line]
    assert len(looked) < MOST_LOOKS
