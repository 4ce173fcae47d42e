"""Topics for command-line tools, on real brokers."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from worker.publish import KafkaPublisher
from worker.topics import NoSuchTopic, TopicReader, ensure_topics
from worker.types import Message

PATIENCE_SECONDS = 30.0


@pytest.fixture
async def topic(broker_address: str) -> str:
    """A topic of three partitions."""
    name = f"topic-{uuid.uuid4().hex}"
    await ensure_topics(broker_address, {name: 3})
    return name


@pytest.fixture
async def publisher(broker_address: str) -> AsyncIterator[KafkaPublisher]:
    publisher = KafkaPublisher(bootstrap=broker_address, client_id="topics")
    await publisher.start()
    yield publisher
    await publisher.close()


def reader_of(address: str, topic: str) -> TopicReader:
    return TopicReader(bootstrap=address, topic=topic, client_id="topics")


async def publish(publisher: KafkaPublisher, topic: str, *numbers: int) -> None:
    messages = [Message(topic, key=b"%d" % each, value=b"%d" % each) for each in numbers]
    await asyncio.gather(*(publisher.publish(message) for message in messages))


async def test_reading_all_gives_every_record_there_is_and_ends(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(50))
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        values = Counter([record.value async for record in reader.read_all()])
        again = Counter([record.value async for record in reader.read_all()])
    assert values == again == Counter(b"%d" % each for each in range(50))


async def test_reading_all_of_an_empty_topic_ends(broker_address: str, topic: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        assert [record async for record in reader.read_all()] == []


async def test_reading_all_ends_although_the_topic_grows_while_it_is_read(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(20))
    values = []
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        async for record in reader.read_all():
            values.append(record.value)
            await publish(publisher, topic, 100)
    assert {b"%d" % each for each in range(20)} <= set(values)


async def test_following_gives_what_is_published_from_then_on_and_nothing_older(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(20))
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        records = await reader.follow()
        await publish(publisher, topic, 100, 101, 102)
        values = {(await anext(records)).value for _ in range(3)}
    assert values == {b"100", b"101", b"102"}


async def test_following_after_reading_all_starts_at_the_present_end(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, 1)
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        assert [record.value async for record in reader.read_all()] == [b"1"]
        await publish(publisher, topic, 1, 2)
        records = await reader.follow()
        await publish(publisher, topic, 3)
        assert (await anext(records)).value == b"3"


async def test_reading_a_topic_that_does_not_exist_says_so_and_does_not_create_it(
    broker_address: str,
) -> None:
    name = f"topic-{uuid.uuid4().hex}"
    for _ in range(2):
        with pytest.raises(NoSuchTopic, match=name):
            async with reader_of(broker_address, name):
                pass


async def test_a_broker_that_is_away_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1"):
        async with reader_of("127.0.0.1:1", "topic"):
            pass


async def test_ensuring_topics_leaves_those_that_exist_alone(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, 1)
    other = f"topic-{uuid.uuid4().hex}"
    await ensure_topics(broker_address, {topic: 7, other: 1})
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        assert [record.value async for record in reader.read_all()] == [b"1"]
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, other) as reader:
        assert [record async for record in reader.read_all()] == []
