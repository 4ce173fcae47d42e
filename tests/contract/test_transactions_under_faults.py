"""Exactly once while brokers of Apache Kafka come and go."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTopicPartition

from tests.apache_kafka import KafkaCluster, apache_kafka, unavailable
from tests.contract.members import PATIENCE_SECONDS, Member, fresh_topic, member, publish
from tests.contract.test_transactions import (
    KafkaTransactionKit,
    StartableTransactions,
    answers,
    at,
    requests,
    started,
)
from worker.seams import Aborted, Fenced, Undelivered
from worker.types import Message, Record

log = structlog.get_logger(__name__)

BROKERS = 3
REQUESTS = 1000  # with each of them killed
BATCH = 10
SECONDS_FOR_ALL_FAILOVERS = 150.0

pytestmark = [
    pytest.mark.timeout(2 * SECONDS_FOR_ALL_FAILOVERS),
    pytest.mark.skipif(unavailable() is not None, reason=f"{unavailable()}"),
    pytest.mark.usefixtures("apache_address"),  # only where tests run on Apache Kafka at all
]


@pytest.fixture(params=[1])
def cluster(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    # so that a transaction which takes too long is found out soon
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "200"}
    with apache_kafka(request.param, properties=properties) as cluster:
        yield cluster


@pytest.fixture
def kit(cluster: KafkaCluster) -> KafkaTransactionKit:
    return KafkaTransactionKit(cluster.bootstrap)


async def test_while_no_broker_answers_a_transaction_is_in_doubt_and_closing_takes_no_time(
    cluster: KafkaCluster, kit: KafkaTransactionKit, group: str
) -> None:
    verdicts = await fresh_topic(kit, 1)
    async with requests(kit, 1, group) as (reader, topic):
        membership = reader.source.membership()
        async with started(kit.transactions(group, delivery_timeout_seconds=1.0)) as impatient:
            await impatient.commit(answers(verdicts, [0]), at(topic, 1), membership)
            await asyncio.to_thread(cluster.kill, 0)
            with pytest.raises(Undelivered, match="in doubt"):
                await impatient.commit(answers(verdicts, [1]), at(topic, 1), membership)


async def test_a_transaction_that_took_longer_than_its_timeout_is_fenced(
    kit: KafkaTransactionKit, group: str
) -> None:
    verdicts, later = await fresh_topic(kit, 1), f"topic-{uuid.uuid4().hex}"
    messages = [*answers(verdicts, [0]), Message(later, b"key", b"value")]
    async with (
        requests(kit, 1, group) as (reader, topic),
        started(kit.transactions(group, transaction_timeout_seconds=1.0)) as slow,
    ):
        committing = asyncio.create_task(
            slow.commit(messages, at(topic, 1), reader.source.membership())
        )
        await marked(kit, verdicts)
        await kit.create(later, 1)
        with pytest.raises(Fenced, match="timeout"):
            await committing
    assert await kit.values(verdicts) == []
    assert await kit.values(later) == []


async def marked(kit: KafkaTransactionKit, topic: str) -> None:
    """Waits until the broker has ended the transaction that wrote one message to the topic."""
    partition = KafkaTopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=kit.address)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asyncio.to_thread(consumer.end_offsets, [partition]))[partition] < 2:
                pass
    finally:
        consumer.close()


# ---------------------------------------------------------------- three brokers


class Worker:
    """Answers each request with one verdict; one that must end is started again."""

    def __init__(self, kit: KafkaTransactionKit, topic: str, verdicts: str, group: str) -> None:
        self._kit = kit
        self._topic = topic
        self._verdicts = verdicts
        self._group = group
        self.offset = 0

    async def work_until(self, offset: int) -> None:
        while self.offset < offset:
            try:
                await self._process(offset)
            except (Fenced, Undelivered) as error:
                log.warning("restarted", error=repr(error))

    async def _process(self, offset: int) -> None:
        async with (
            started(self._kit.transactions(self._group)) as transactions,
            member(self._kit, self._topic, self._group) as reader,
        ):
            while self.offset < offset:
                if records := await reader.poll(BATCH):
                    await self._answer(records, reader, transactions)

    async def _answer(
        self, records: list[Record], reader: Member, transactions: StartableTransactions
    ) -> None:
        """Until it is committed, or the partition is no longer ours."""
        values = [int((record.value or b"").removeprefix(b"value ")) for record in records]
        offsets = at(self._topic, records[-1].offset + 1)
        forgotten = len(reader.forgotten)
        while True:
            membership = reader.source.membership()
            if len(reader.forgotten) > forgotten:
                return
            try:
                await transactions.commit(answers(self._verdicts, values), offsets, membership)
            except Aborted as error:
                log.warning("aborted", error=repr(error))
                assert await reader.source.poll(0) == []  # in which the group is joined again
            else:
                self.offset = records[-1].offset + 1
                return


@pytest.mark.parametrize("cluster", [BROKERS], indirect=True)
async def test_while_each_broker_is_killed_and_started_again_every_answer_is_seen_once(
    cluster: KafkaCluster, kit: KafkaTransactionKit, group: str
) -> None:
    topic, verdicts = await fresh_topic(kit, 1), await fresh_topic(kit, 1)
    worker = Worker(kit, topic, verdicts, group)
    publisher = kit.publisher()
    await publisher.start()

    async def kill_each_broker() -> None:
        for number in range(BROKERS):
            published = number * REQUESTS
            await publish(publisher, topic, range(published, published + REQUESTS))
            await asyncio.to_thread(cluster.kill, number)  # while they are being answered
            while worker.offset < published + REQUESTS:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(cluster.start, number)

    try:
        async with asyncio.timeout(SECONDS_FOR_ALL_FAILOVERS), asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_each_broker())
            tasks.create_task(worker.work_until(BROKERS * REQUESTS))
    finally:
        await publisher.close()
    answered = [int(value or b"") for value in await kit.values(verdicts)]
    assert answered == list(range(BROKERS * REQUESTS))
