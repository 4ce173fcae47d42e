"""Topics for command-line tools, on real brokers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from kafka import KafkaProducer

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


async def test_reading_on_after_reading_all_misses_and_repeats_nothing(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(20))
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        values = []
        async for record in reader.read_all():
            if not values:
                await publish(publisher, topic, *range(20, 40))
            values.append(record.value)
        records = reader.read_news()
        while len(values) < 40:
            values.append((await anext(records)).value)
    assert sorted(values) == sorted(b"%d" % each for each in range(40))


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


async def test_reading_since_a_time_gives_what_was_published_from_then_on(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(20))
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        before = [record async for record in reader.read_all()]
        since = max(record.timestamp_ms for record in before) / 1000 + 0.002
        await asyncio.sleep(max(0.0, since - time.time()))
        await publish(publisher, topic, *range(100, 130))
        values = {record.value async for record in reader.read_all(since=since)}
    assert values == {b"%d" % each for each in range(100, 130)}


async def test_reading_on_gives_what_came_since_the_last_reading(
    broker_address: str, publisher: KafkaPublisher, topic: str
) -> None:
    await publish(publisher, topic, *range(20))
    async with asyncio.timeout(PATIENCE_SECONDS), reader_of(broker_address, topic) as reader:
        assert len([record async for record in reader.read_all()]) == 20
        assert [record async for record in reader.read_news()] == []
        await publish(publisher, topic, 100, 101)
        assert {record.value async for record in reader.read_news()} == {b"100", b"101"}
        assert [record async for record in reader.read_news()] == []


async def test_what_waits_for_an_open_transaction_is_not_waited_for(
    apache_address: str,
) -> None:
    """Of those who read what is committed; aborted transactions said nothing."""
    topic = f"topic-{uuid.uuid4().hex}"
    await ensure_topics(apache_address, {topic: 1})

    def open_transaction() -> KafkaProducer:
        producer = KafkaProducer(
            bootstrap_servers=apache_address.split(","), transactional_id=uuid.uuid4().hex
        )
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"aborted").get(PATIENCE_SECONDS)
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send(topic, b"committed").get(PATIENCE_SECONDS)
        producer.commit_transaction()
        producer.begin_transaction()
        producer.send(topic, b"open").get(PATIENCE_SECONDS)
        return producer

    producer = await asyncio.to_thread(open_transaction)
    committed = TopicReader(
        bootstrap=apache_address,
        topic=topic,
        client_id="topics",
        options={"isolation_level": "read_committed"},
    )
    async with asyncio.timeout(PATIENCE_SECONDS), committed as reader:
        values = [record.value async for record in reader.read_all(idle_seconds=1.0)]
        await asyncio.to_thread(producer.commit_transaction)
        news = [record.value async for record in reader.read_news(idle_seconds=1.0)]
    await asyncio.to_thread(producer.close)
    assert (values, news) == ([b"committed"], [b"open"])
