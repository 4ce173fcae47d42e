"""How long a poll lasts. One that waited as long as it may would outlast the patience of a test."""

from __future__ import annotations

import asyncio

from tests.contract.members import PATIENCE_SECONDS, KafkaKit, Member, fresh_topic
from worker.source import KafkaSource


async def test_a_poll_without_room_does_not_last_until_records_come(broker_address: str) -> None:
    topic = await fresh_topic(KafkaKit(broker_address), 1)
    source = KafkaSource(
        bootstrap=broker_address, topics=[topic], group=topic, client_id="c", poll_seconds=3600
    )
    member = Member(source)
    await source.start(drain=member.drain, forget=member.forget)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(3):
                assert list(await source.poll(0)) == []
    finally:
        await source.close()
