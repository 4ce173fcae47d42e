"""What happens when partitions of the group move: a bridge from kafka-python's network loop, on
which a rebalance is announced, to the event loop, on which the work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future as ThreadFuture
from typing import Any

import structlog
from kafka import AsyncConsumerRebalanceListener, OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka.errors import KafkaError
from kafka.future import Future

from worker import telemetry
from worker.types import TopicPartition

log = structlog.get_logger(__name__)

Partitions = Collection[TopicPartition]
Drain = Callable[[Partitions], Awaitable[Mapping[TopicPartition, int]]]
Forget = Callable[[Partitions], object]


class Rebalances(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Its methods run on the network loop, whose heartbeats go on while they await.

    ``drain`` and ``forget`` run on the event loop on which this is made.
    """

    def __init__(self, consumer: Any, network: Any, *, drain: Drain, forget: Forget) -> None:
        self._consumer = consumer
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._drain = drain
        self._forget = forget
        self._owned: set[TopicPartition] = set()

    def owns(self, partition: TopicPartition) -> bool:
        """Assigned to us, and not being given up."""
        return partition in self._owned

    async def on_partitions_assigned(self, assigned: set[KafkaTopicPartition]) -> None:
        _note("assigned", assigned)
        # They wait for the next poll with room, for the present one may have none.
        self._consumer.pause(*assigned)
        self._owned.update(TopicPartition(*each) for each in assigned)

    async def on_partitions_revoked(self, revoked: set[KafkaTopicPartition]) -> None:
        _note("revoked", revoked)
        partitions = [TopicPartition(*each) for each in revoked]
        offsets = await self._ask(self._drained(partitions))
        if offsets:
            await self._commit(offsets)
        await self._give_up(partitions)

    async def on_partitions_lost(self, lost: set[KafkaTopicPartition]) -> None:
        _note("lost", lost)
        await self._give_up([TopicPartition(*each) for each in lost])

    async def _give_up(self, partitions: Partitions) -> None:
        self._owned.difference_update(partitions)
        await self._ask(self._forgotten(partitions))

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        try:  # not the consumer's commit(): called from here, it would wait for itself
            await self._consumer.commit_async(kafka_offsets(offsets))
        except KafkaError as error:  # the new owner reads them again
            log.warning("commit_refused", error=repr(error), offsets=readable(offsets))

    def _ask(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        """What ``coroutine`` gives on the event loop, awaitable on the network loop."""
        future = Future()

        def settle(answer: ThreadFuture[Any]) -> None:
            if (error := answer.exception()) is not None:
                future.failure(error)
            else:
                future.success(answer.result())
            self._network.wakeup()

        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(settle)
        return future

    # ------------------------------------------------------------ on the event loop

    async def _drained(self, partitions: Partitions) -> Mapping[TopicPartition, int]:
        return await self._drain(partitions)

    async def _forgotten(self, partitions: Partitions) -> None:
        self._forget(partitions)


def kafka_offsets(
    offsets: Mapping[TopicPartition, int],
) -> dict[KafkaTopicPartition, OffsetAndMetadata]:
    return {
        KafkaTopicPartition(*partition): OffsetAndMetadata(offset, "", -1)
        for partition, offset in offsets.items()
    }


def readable(offsets: Mapping[TopicPartition, int]) -> dict[str, int]:
    """For the log."""
    return {f"{topic}-{partition}": offset for (topic, partition), offset in offsets.items()}


def _note(kind: str, partitions: Collection[KafkaTopicPartition]) -> None:
    if partitions:
        telemetry.REBALANCES.labels(kind).inc()
        log.info("rebalance", kind=kind, partitions=sorted(f"{t}-{p}" for t, p in partitions))
