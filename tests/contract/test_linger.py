"""How long a message waits for others. A wait that lasted would outlast the patience of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from tests.contract.members import PATIENCE_SECONDS, KafkaKit, fresh_topic
from worker.publish import KafkaPublisher
from worker.types import Message

AN_HOUR = 3600.0
COMPANY = 8  # messages at once, after which others wait


@pytest.fixture
async def topic(broker_address: str) -> str:
    return await fresh_topic(KafkaKit(broker_address), 4)


@pytest.fixture
async def publisher(broker_address: str) -> AsyncIterator[KafkaPublisher]:
    publisher = KafkaPublisher(bootstrap=broker_address, client_id="c", linger_seconds=AN_HOUR)
    await publisher.start()
    yield publisher
    await publisher.close()


def publishing(
    publisher: KafkaPublisher, topic: str, numbers: Iterable[int]
) -> list[asyncio.Task[None]]:
    messages = [Message(topic, b"%d" % number, b"value") for number in numbers]
    return [asyncio.create_task(publisher.publish(message)) for message in messages]


async def acknowledged(tasks: Iterable[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*tasks)


async def test_a_message_that_comes_alone_does_not_wait(
    publisher: KafkaPublisher, topic: str
) -> None:
    for number in range(5):
        await acknowledged(publishing(publisher, topic, [number]))


async def test_messages_of_one_moment_do_not_wait_for_others(
    publisher: KafkaPublisher, topic: str
) -> None:
    await acknowledged(publishing(publisher, topic, range(COMPANY)))


async def test_in_company_a_message_waits_until_there_are_enough(
    publisher: KafkaPublisher, topic: str
) -> None:
    await acknowledged(publishing(publisher, topic, range(COMPANY)))
    few = publishing(publisher, topic, [100])
    await asyncio.wait(few, timeout=0.05)
    assert not few[0].done()
    await acknowledged([*few, *publishing(publisher, topic, range(COMPANY * 2))])


async def test_closing_sends_what_waits(broker_address: str, topic: str) -> None:
    publisher = KafkaPublisher(bootstrap=broker_address, client_id="c", linger_seconds=AN_HOUR)
    await publisher.start()
    await acknowledged(publishing(publisher, topic, range(COMPANY)))
    waiting = publishing(publisher, topic, [100])
    await asyncio.wait(waiting, timeout=0)
    await publisher.close()
    await acknowledged(waiting)


async def test_what_was_given_up_while_it_waited_is_no_company(
    publisher: KafkaPublisher, topic: str
) -> None:
    given_up = publishing(publisher, topic, range(COMPANY))
    await asyncio.wait(given_up, timeout=0)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    for number in range(3):
        await acknowledged(publishing(publisher, topic, [number]))
