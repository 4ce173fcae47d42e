"""Starting while one of the brokers of Apache Kafka is away."""

from __future__ import annotations

import pytest

from tests.apache_kafka import apache_kafka, unavailable
from tests.contract.members import KafkaKit, fresh_topic, member

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}"),
    pytest.mark.usefixtures("apache_address"),  # only where tests run on Apache Kafka at all
]

#: Any one of three brokers is asked for the topics, so that so many are enough to ask all.
STARTS = 15


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
