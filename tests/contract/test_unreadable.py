"""Records that kafka-python cannot read: none of them blocks its partition."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.apache_kafka import KafkaCluster, _take_jars, unavailable
from worker.publish import KafkaPublisher
from worker.source import KafkaSource
from worker.topics import ensure_topics
from worker.types import Message, Record
from worker.unreadable import UNREADABLE_HEADER

PATIENCE_SECONDS = 60.0


class Name(str):
    """A header's name as a producer in another language may write it: bytes that are no text."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"caf\xe9"


@pytest.fixture(scope="module")
def apache() -> Iterator[tuple[str, Path]]:
    """A broker of Apache Kafka, and the folder of its logs."""
    if why := unavailable():
        pytest.skip(why)
    _take_jars()
    with ExitStack() as parts:
        folder = Path(parts.enter_context(TemporaryDirectory(prefix="apache-kafka-")))
        cluster = KafkaCluster(folder, 1, {})
        parts.callback(cluster._close)
        cluster._open()
        yield cluster.bootstrap, folder / "broker-0"


async def new_topic(broker: str) -> str:
    topic = f"topic-{uuid.uuid4().hex}"
    await ensure_topics(broker, {topic: 1})
    return topic


async def publish(broker: str, *batches: list[Message], compression: str = "none") -> None:
    publisher = KafkaPublisher(
        bootstrap=broker, client_id="tests", compression=compression, options={"linger_ms": 500}
    )
    try:
        await publisher.start()
        for batch in batches:
            await asyncio.gather(*(publisher.publish(message) for message in batch))
    finally:
        await publisher.close()


async def consume(broker: str, topic: str, count: int) -> list[Record]:
    source = KafkaSource(
        bootstrap=broker,
        topics=[topic],
        group=f"group-{uuid.uuid4().hex}",
        client_id="tests",
        session_timeout_seconds=3.0,
    )
    records: list[Record] = []
    try:
        await source.start(drain=nothing_in_flight, forget=lambda partitions: None)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(records) < count:
                records += await source.poll(1)
    finally:
        await source.close()
    return records


async def nothing_in_flight(partitions: object) -> Mapping[Any, Any]:
    return {}


async def test_a_header_name_that_is_no_text_is_read_with_question_marks(
    broker_address: str,
) -> None:
    topic = await new_topic(broker_address)
    strange = Message(topic, b"key", b"value \xe9", ((Name("name"), b"\xff"), ("plain", b"1")))
    await publish(broker_address, [strange, Message(topic, b"key", b"next")])
    records = await consume(broker_address, topic, 2)
    assert [record.value for record in records] == [b"value \xe9", b"next"]
    assert records[0].headers == (("caf?", b"\xff"), ("plain", b"1"))
    assert records[0].key == b"key"


async def test_such_a_name_in_a_compressed_batch_is_read_too(
    broker_address: str,
) -> None:
    topic = await new_topic(broker_address)
    strange = Message(topic, b"key", None, ((Name("name"), b"1"),))
    await publish(broker_address, [strange, Message(topic, b"key", b"next")], compression="gzip")
    records = await consume(broker_address, topic, 2)
    assert [record.headers for record in records] == [(("caf?", b"1"),), ()]


async def test_a_batch_that_rotted_on_disk_is_passed_over_record_by_record(
    apache: tuple[str, Path],
) -> None:
    broker, logs = apache
    topic = await new_topic(broker)
    batches = [[Message(topic, None, f"{n} {i}".encode()) for i in range(3)] for n in range(3)]
    await publish(broker, *batches)
    log = logs / f"{topic}-0" / f"{0:020}.log"
    with log.open("r+b") as file:
        file.seek(log.read_bytes().index(b"1 1"))
        file.write(b"? ?")
    records = await consume(broker, topic, 9)
    assert [record.offset for record in records] == list(range(9))
    assert [record.value for record in records] == [
        *(b"0 0", b"0 1", b"0 2"),
        *(None, None, None),
        *(b"2 0", b"2 1", b"2 2"),
    ]
    for record in records[3:6]:
        assert b"crc" in dict(record.headers)[UNREADABLE_HEADER]
