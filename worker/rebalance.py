"""What happens when partitions of the group move: a bridge from kafka-python's network loop, on
which a rebalance is announced, to the event loop, on which the work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future as ThreadFuture
from typing import Any

import structlog
from kafka import AsyncConsumerRebalanceListener
from kafka import OffsetAndMetadata as KafkaOffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka.errors import KafkaError
from kafka.future import Future

from worker import telemetry
from worker.types import OffsetAndMetadata, TopicPartition

log = structlog.get_logger(__name__)

Partitions = Collection[TopicPartition]
Offsets = Mapping[TopicPartition, OffsetAndMetadata]
Drain = Callable[[Partitions], Awaitable[Offsets]]
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
        _lose_all_with_the_membership(consumer._coordinator)
        _look_for_the_coordinator_without_haste(consumer._coordinator)
        _end_what_was_begun(consumer._coordinator)

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
        # What comes in exchange is polled from now on, and told of only when all this is over
        self._owned.update(TopicPartition(*each) for each in self._consumer.assignment())
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

    async def _commit(self, offsets: Offsets) -> None:
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

    async def _drained(self, partitions: Partitions) -> Offsets:
        return await self._drain(partitions)

    async def _forgotten(self, partitions: Partitions) -> None:
        self._forget(partitions)


def _lose_all_with_the_membership(coordinator: Any) -> None:
    """Mends kafka-python 3.0.12, for which a member that was thrown out keeps its partitions.

    Thrown out while it waits to join, it is not told of its loss, and goes on where it was. And
    when it joins again it claims to own what it had: the leader, who cannot tell the older of two
    claims, may hand it partitions that another still works on.
    """
    reset = coordinator.reset_generation

    def reset_generation(*given: Any, **named: Any) -> None:
        reset(*given, **named)
        coordinator.rejoining = False  # so that the next try to join begins with what is lost
        for assignor in coordinator._assignors.values():
            assignor.member_assignment = None  # what it claims to own

    coordinator.reset_generation = reset_generation


def _look_for_the_coordinator_without_haste(coordinator: Any) -> None:
    """Mends kafka-python 3.0.12, which asks who coordinates the group, is told of a broker that it
    has just lost, and asks again at once: a thousand times a second, with a line in the log each
    time, until the brokers have missed it too."""
    ask = coordinator._send_group_coordinator_request
    pause = coordinator.config["retry_backoff_ms"] / 1000

    async def ask_and_pause() -> Any:
        found = await ask()
        if coordinator._client.connection_delay(found) > 0:
            await coordinator._net.sleep(pause)
        return found

    coordinator._send_group_coordinator_request = ask_and_pause


def _end_what_was_begun(coordinator: Any) -> None:
    """Mends kafka-python 3.0.12, which begins to join because a topic looks otherwise, and leaves
    it at that when the topic looks as before by the next poll: it then is in a rebalance for ever,
    sends no heartbeats, and commits nothing."""
    need = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: coordinator.rejoining or need()


def kafka_offsets(offsets: Offsets) -> dict[KafkaTopicPartition, KafkaOffsetAndMetadata]:
    return {
        KafkaTopicPartition(*partition): KafkaOffsetAndMetadata(offset, metadata, -1)
        for partition, (offset, metadata) in offsets.items()
    }


def readable(offsets: Offsets) -> dict[str, int]:
    """For the log."""
    return {f"{topic}-{partition}": at.offset for (topic, partition), at in offsets.items()}


def _note(kind: str, partitions: Collection[KafkaTopicPartition]) -> None:
    if partitions:
        telemetry.REBALANCES.labels(kind).inc()
        log.info("rebalance", kind=kind, partitions=sorted(f"{t}-{p}" for t, p in partitions))
