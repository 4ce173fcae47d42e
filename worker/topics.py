"""Topics for command-line tools: created where missing, read from end to end, or followed.

Readers belong to no group: they commit nothing, and disturb nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from kafka import KafkaAdminClient, KafkaConsumer
from kafka import TopicPartition as KafkaTopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError

from worker.broker import Options, open_client, record_of, servers
from worker.errors import Misconfigured
from worker.types import Record, TopicPartition

log = structlog.get_logger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 0.1


class NoSuchTopic(Misconfigured):
    """The topic does not exist, and reading does not create it."""


async def ensure_topics(
    bootstrap: str | Sequence[str],
    partitions: Mapping[str, int],
    *,
    options: Options | None = None,
) -> None:
    """Create those topics that are missing, with so many partitions and as many replicas as the
    brokers give by default; leave the others alone.

    Raises ``ConnectionError`` when no broker answers.
    """

    def create() -> None:
        admin, _ = _open(KafkaAdminClient, bootstrap_servers=servers(bootstrap), **(options or {}))
        try:
            for topic in sorted(partitions.keys() - set(admin.list_topics())):
                try:
                    admin.create_topics(
                        {topic: {"num_partitions": partitions[topic]}}, wait_for_metadata=True
                    )
                except TopicAlreadyExistsError:  # somebody else was faster
                    continue
        finally:
            admin.close()

    await asyncio.to_thread(create)


async def topic_limits(
    bootstrap: str | Sequence[str], topics: Sequence[str], *, options: Options | None = None
) -> Mapping[str, int]:
    """``max.message.bytes`` of each topic; those that do not exist, and those of brokers that do
    not tell, are left out.

    Raises ``KafkaTimeoutError`` when no broker answers.
    """

    def ask() -> Mapping[str, int]:
        settings = {"bootstrap_servers": servers(bootstrap), **(options or {})}
        admin, _ = open_client(KafkaAdminClient, **settings)
        name = "max.message.bytes"
        try:
            told = admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic, [name]) for topic in topics],
                config_filter="all",
            )
        except KafkaTimeoutError:
            raise
        except KafkaError as error:  # the embedded broker hangs up, others may not allow it
            log.info("topic_limits_unknown", error=repr(error), topics=list(topics))
            return {}
        finally:
            admin.close()
        return {
            topic: int(configs[name]["value"])
            for topic, configs in told.get("topic", {}).items()
            if name in configs
        }

    return await asyncio.to_thread(ask)


class TopicReader:
    """Reads all partitions of one topic, as ``async with TopicReader(...) as reader``.

    Entering raises ``ConnectionError`` when no broker answers, ``NoSuchTopic``, or
    ``Misconfigured``. Where a topic ends is taken from the answers to fetches: brokers in front
    of which the listing of end offsets is wrong are right about it there.
    """

    def __init__(
        self,
        *,
        bootstrap: str | Sequence[str],
        topic: str,
        client_id: str,
        options: Options | None = None,
    ) -> None:
        self._topic = topic
        self._settings: dict[str, Any] = {
            "bootstrap_servers": servers(bootstrap),
            "client_id": client_id,
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "fetch_max_wait_ms": int(_POLL_SECONDS * 1000),  # an empty partition tells its end then
            # within a session, a partition with no news would not tell its end again
            "enable_incremental_fetch_sessions": False,
            "metrics_enabled": False,
            **(options or {}),
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-reader")
        self._consumer: Any = None
        self._read_to: dict[TopicPartition, int] = {}  #: where the last reading ended

    async def __aenter__(self) -> Self:
        try:
            await self._call(self._connect)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def read_all(
        self, *, since: float | None = None, idle_seconds: float = 10.0
    ) -> AsyncIterator[Record]:
        """From the beginning to the end as it is when the reading begins; with ``since`` (seconds
        since the epoch), what was published from then on.

        Raises ``ConnectionError`` when nothing comes for ``idle_seconds`` before that end.
        """
        await self._call(self._start_over)
        if since is not None:
            await self._call(self._seek_to_time, since)
        async for record in self._to_the_end(idle_seconds):
            # the embedded broker is not always right about where a time is in a partition
            if since is None or record.timestamp_ms >= since * 1000:
                yield record

    async def read_news(self, *, idle_seconds: float = 10.0) -> AsyncIterator[Record]:
        """What came since the last reading, to the end as it is now. Raises as ``read_all``."""
        await self._call(self._take_up)
        async for record in self._to_the_end(idle_seconds):
            yield record

    async def _to_the_end(self, idle_seconds: float) -> AsyncIterator[Record]:
        ends: dict[TopicPartition, int] = {}
        heard = time.monotonic()
        while not await self._call(self._reached, ends):
            records = await self._call(self._poll)
            now = time.monotonic()
            if records:
                heard = now
            elif now - heard > idle_seconds:
                if not await self._call(self._held_up):
                    raise ConnectionError(
                        f"the topic {self._topic} gave nothing for {idle_seconds:g} s before its "
                        "end; check the brokers, and read it again"
                    )
                ends = await self._call(self._positions)
            # as first seen: a topic that is written to meanwhile would never end
            ends = await self._call(self._ends) | ends
            for record in records:
                if record.offset < ends[record.topic_partition]:
                    yield record
        self._read_to = ends
        await self._call(self._seek, ends)  # what lies beyond may have been polled already

    async def follow(self) -> AsyncIterator[Record]:
        """What is published after this returned, as it comes, without end."""
        await self._call(self._start_over)
        while not await self._call(self._seek_to_end):
            await self._call(self._poll)
        return self.read_on()

    async def read_on(self) -> AsyncIterator[Record]:
        """What comes after what was read, as it comes, without end."""
        while True:
            for record in await self._call(self._poll):
                yield record

    async def _close(self) -> None:
        if self._consumer is not None:
            await self._call(self._consumer.close)
        self._thread.shutdown()

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # ------------------------------------------------------------ on the consumer's thread

    def _connect(self) -> None:
        self._consumer, _ = _open(KafkaConsumer, **self._settings)
        if not self._consumer.partitions_for_topic(self._topic):
            raise NoSuchTopic(
                f"there is no topic {self._topic} at {self._settings['bootstrap_servers']}; "
                "create it, or correct its name in the settings"
            )

    def _start_over(self) -> None:
        """At the beginning, with nothing known of where the partitions end."""
        self._consumer.unsubscribe()
        numbers = self._consumer.partitions_for_topic(self._topic)
        self._consumer.assign([KafkaTopicPartition(self._topic, number) for number in numbers])

    def _seek_to_time(self, since: float) -> None:
        assigned = self._consumer.assignment()
        found = self._consumer.offsets_for_times(dict.fromkeys(assigned, since * 1000))
        for partition in assigned:
            if at := found.get(partition):
                self._consumer.seek(partition, at.offset)
            else:
                self._consumer.seek_to_end(partition)

    def _take_up(self) -> None:
        self._start_over()
        for partition, offset in self._read_to.items():
            self._consumer.seek(KafkaTopicPartition(*partition), offset)

    def _held_up(self) -> bool:
        """Whether all that is committed was read, and the rest waits for a transaction to end."""
        if self._settings.get("isolation_level") != "read_committed":
            return False
        # of a consumer that reads what is committed, these are the last stable offsets
        stable = self._consumer.end_offsets(list(self._consumer.assignment()))
        held_up = all(self._consumer.position(each) >= end for each, end in stable.items())
        if held_up:
            log.warning("open_transaction_not_read", topic=self._topic)
        return held_up

    def _positions(self) -> dict[TopicPartition, int]:
        return {
            TopicPartition(*each): self._consumer.position(each)
            for each in self._consumer.assignment()
        }

    def _seek_to_end(self) -> bool:
        """False while the end of some partition is not known."""
        ends = self._ends()
        if ends.keys() != self._consumer.assignment():
            return False
        self._seek(ends)
        return True

    def _seek(self, ends: Mapping[TopicPartition, int]) -> None:
        for partition, end in ends.items():
            self._consumer.seek(KafkaTopicPartition(*partition), end)

    def _poll(self) -> list[Record]:
        polled = self._consumer.poll(timeout_ms=int(_POLL_SECONDS * 1000))
        return [record_of(read) for of_partition in polled.values() for read in of_partition]

    def _ends(self) -> dict[TopicPartition, int]:
        """The end of each partition that has answered a fetch."""
        ends = {each: self._consumer.highwater(each) for each in self._consumer.assignment()}
        return {TopicPartition(*each): end for each, end in ends.items() if end is not None}

    def _reached(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether the position, which passes over what was compacted away, is at the end."""
        return ends.keys() == self._consumer.assignment() and all(
            self._consumer.position(KafkaTopicPartition(*partition)) >= end
            for partition, end in ends.items()
        )


def _open(kind: Callable[..., Any], **settings: object) -> Any:
    try:
        return open_client(kind, **settings)
    except KafkaTimeoutError as error:
        raise ConnectionError(
            f"no Kafka broker answers at {settings['bootstrap_servers']}; check the address, "
            "that the broker is up, and IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL"
        ) from error
