"""Consumes: records from Kafka, for as many as there is room, as a member of a group.

The consumer is not thread safe, and its calls block, so all of them run on one thread of their
own; commits alone, which may be asked for beside a poll, on a second, and the ends of partitions on
a third. Its network loop is one more, on which a rebalance is announced. A rebalance asks the event
loop to let the work in flight of the revoked partitions finish, and goes on with what it answers.

Partitions are assigned cooperatively: only those that move are revoked, while the work on all
others goes on. The older, eager protocol would be wrong here, and not just slow: kafka-python
keeps the position of a partition that is revoked and assigned again to the same member, so records
that were given up in between would never be read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    CommitFailedError,
    KafkaError,
    RebalanceInProgressError,
    RetriableError,
)

from worker.broker import (
    Options,
    open_client,
    record_of,
    retry_delays,
    servers,
    until_reachable,
)
from worker.rebalance import Drain, Forget, Rebalances, kafka_offsets, readable
from worker.types import OffsetAndMetadata, Record, TopicPartition

log = structlog.get_logger(__name__)

T = TypeVar("T")

_COMMIT_SECONDS = 5.0  # for the broker to answer; after that the group is kept alive in between
_CLOSE_SECONDS = 5.0
_ENDS_SECONDS = 1.0  # for brokers to tell where partitions end
_ENDS_EVERY_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 5.0  # between commits while no broker answers
_WITHOUT_ROOM_SECONDS = 0.1
_TOLD_EVERY_SECONDS = 10.0  # that a rebalance holds up a commit


class KafkaSource:
    """``seams.Source`` over a consumer group.

    ``poll_seconds`` is the longest a poll waits for records: with 0.5 an idle worker takes 1 % of a
    core, with 0.1 it takes 3. ``fetch_bytes`` bounds what is read ahead from each broker, and
    ``partition_fetch_bytes`` from each partition; a single larger message still comes through.
    ``options`` are more of kafka-python's own settings, such as ``security_protocol``.

    A poll that was cancelled may have taken records with it, so the source refuses to poll again:
    the next record committed would pass over the lost ones.
    """

    def __init__(
        self,
        *,
        bootstrap: str | Sequence[str],
        topics: Sequence[str],
        group: str,
        client_id: str,
        session_timeout_seconds: float = 30.0,
        max_poll_interval_seconds: float = 300.0,
        poll_seconds: float = 0.5,
        fetch_bytes: int = 16 * 1024 * 1024,
        partition_fetch_bytes: int = 1024 * 1024,
        options: Options | None = None,
    ) -> None:
        self._bootstrap = servers(bootstrap)
        self._topics = list(topics)
        self._poll_seconds = poll_seconds
        session_timeout_ms = int(session_timeout_seconds * 1000)
        self._settings: dict[str, Any] = {
            "bootstrap_servers": self._bootstrap,
            "client_id": client_id,
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            # what a producer took back is no request; and with it, the offsets of a transaction
            # that is still open are waited for
            "isolation_level": "read_committed",
            "partition_assignment_strategy": [CooperativeStickyAssignor],
            "session_timeout_ms": session_timeout_ms,
            # a third, so that one lost heartbeat loses nothing; Kafka's own default is 3 s
            "heartbeat_interval_ms": min(session_timeout_ms // 3, 3000),
            "max_poll_interval_ms": int(max_poll_interval_seconds * 1000),
            "fetch_max_bytes": fetch_bytes,
            "max_partition_fetch_bytes": partition_fetch_bytes,
            "metrics_enabled": False,
            **(options or {}),
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-consumer")
        # kafka-python runs them on its network loop; only the wait is here, beside that of a poll
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="kafka-commits")
        self._ends_thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-ends")
        self._asking: Future[None] | None = None
        self._ask_again_at = 0.0
        self._ends: Mapping[KafkaTopicPartition, int] = {}
        self._consumer: Any = None
        self._network: Any = None
        self._rebalances: Any = None
        self._lag: Mapping[TopicPartition, int] = {}
        self._cancelled = False

    async def start(self, *, drain: Drain, forget: Forget) -> None:
        """Connect and join the group, waiting for the broker and the topics as long as it takes.

        On the event loop, at each rebalance: ``drain`` lets the work in flight of the partitions
        to be given up finish, within a deadline of its own that is well below
        ``max_poll_interval_seconds``, and returns the offsets to commit; then ``forget`` is told
        that they are no longer ours. Of partitions lost without notice only ``forget`` is told.

        Raises ``Misconfigured`` when kafka-python refuses its settings.
        """
        await self._reached(self._open)
        delays = retry_delays()
        while missing := await self._reached(self._missing_topics):
            seconds = next(delays)
            log.warning(
                "topics_missing",
                topics=missing,
                bootstrap=self._bootstrap,
                remedy="create them, or correct their names in the settings",
                retry_in_seconds=seconds,
            )
            await asyncio.sleep(seconds)
        self._rebalances = Rebalances(self._consumer, self._network, drain=drain, forget=forget)
        await self._call(self._consumer.subscribe, self._topics, None, self._rebalances)

    async def poll(self, room: int) -> Sequence[Record]:
        """At most ``room`` records, or none after ``poll_seconds``; see ``seams.Source``.

        Count the records before the next await: a rebalance may ask for them from then on.
        """
        if self._cancelled:
            raise RuntimeError("a cancelled poll took records with it: this source can only close")
        try:
            records = await self._call(self._poll, room)
        except asyncio.CancelledError:
            self._cancelled = True
            raise
        # What was given up while its records were on their way is another's to answer
        return [record for record in records if self._rebalances.owns(record.topic_partition)]

    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata | None]:
        """See ``seams.Source``. Waits until a broker answers."""
        delays = retry_delays()
        while True:
            try:
                return await self._beside_polls(self._committed, partitions)
            except RetriableError as error:
                await self._wait_for_brokers(error, delays)
            await self._call(self._poll, 0)

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """See ``seams.Source``. Waits while the group rebalances or no broker answers; meanwhile
        it keeps the membership alive itself, so it may be awaited instead of polling. Where
        records should keep coming, await it beside the polling: it does not wait for a poll."""
        delays = retry_delays()
        told = time.monotonic()
        while True:
            ours = {tp: at for tp, at in offsets.items() if self._rebalances.owns(tp)}
            try:
                if ours:
                    await self._beside_polls(self._commit, ours)
            except (CommitFailedError, RebalanceInProgressError):
                # polling completes the rebalance, and tells what is still ours
                if time.monotonic() - told > _TOLD_EVERY_SECONDS:
                    told = time.monotonic()
                    log.warning("commit_waits", why="the group rebalances", offsets=readable(ours))
            except RetriableError as error:
                await self._wait_for_brokers(error, delays)
            else:
                if gone := {tp: at for tp, at in offsets.items() if tp not in ours}:
                    log.info("commit_skipped", why="no longer assigned", offsets=readable(gone))
                return
            await self._call(self._poll, 0)

    async def _wait_for_brokers(self, error: Exception, delays: Iterator[float]) -> None:
        """A little longer each time, but not so long that a broker that is back goes unnoticed."""
        seconds = min(next(delays), _LONGEST_WAIT_SECONDS)
        log.warning(
            "commit_retried",
            error=repr(error),
            bootstrap=self._bootstrap,
            retry_in_seconds=seconds,
        )
        await asyncio.sleep(seconds)

    def membership(self) -> object:
        """See ``seams.Source``: kafka-python's ``ConsumerGroupMetadata``."""
        return self._consumer.group_metadata()

    def lag(self) -> Mapping[TopicPartition, int]:
        """See ``seams.Source``. Partitions of which nothing was fetched yet are left out."""
        return {tp: records for tp, records in self._lag.items() if self._rebalances.owns(tp)}

    async def close(self) -> None:
        """Leave the group, after ``drain`` and ``forget`` of all that is assigned."""
        await self._call(self._close)
        self._thread.shutdown()
        self._commits.shutdown(wait=False)
        self._ends_thread.shutdown(wait=False)

    async def _reached(self, attempt: Callable[[], T]) -> T:
        return await until_reachable(
            lambda: self._call(attempt), client="consumer", bootstrap=self._bootstrap
        )

    async def _beside_polls(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._commits, function, *args)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # ------------------------------------------------------------ on the consumer's thread

    def _open(self) -> None:
        # kept here and not by the caller, who may have been cancelled by now, so that it is closed
        self._consumer, self._network = open_client(KafkaConsumer, **self._settings)

    def _missing_topics(self) -> list[str]:
        return [name for name in self._topics if not self._consumer.partitions_for_topic(name)]

    def _poll(self, room: int) -> list[Record]:
        # All or none: a single partition that is paused while its records are buffered never
        # comes back. And always poll: a member that does not is thrown out of the group.
        if room:
            seconds = self._poll_seconds
            self._consumer.resume(*self._consumer.assignment())
        else:  # there may be some soon, and a poll of what is paused lasts as long as it may
            seconds = min(self._poll_seconds, _WITHOUT_ROOM_SECONDS)
            self._consumer.pause(*self._consumer.assignment())
        try:
            polled = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=max(1, room))
        except RetriableError:  # no broker answers, and kafka-python does not wait for one
            time.sleep(seconds)
            polled = {}
        records = [record_of(read) for of_partition in polled.values() for read in of_partition]
        if len(records) > room:
            raise RuntimeError(f"polled {len(records)} records with room for {room}")
        self._keep_asking_for_ends()
        with suppress(RetriableError):  # what was measured last stands
            self._lag = self._measured_lag()
        return records

    def _keep_asking_for_ends(self) -> None:
        """A fetch tells where a partition ended then. While a worker has no room, what it fetched
        lies buffered and nothing is fetched: the lag would shrink as it grows."""
        if self._asking is not None and not self._asking.done():
            return
        if time.monotonic() >= self._ask_again_at:
            self._ask_again_at = time.monotonic() + _ENDS_EVERY_SECONDS
            assigned = list(self._consumer.assignment())
            self._asking = self._ends_thread.submit(self._ask_for_ends, assigned)

    def _measured_lag(self) -> dict[TopicPartition, int]:
        lag = {}
        for assigned in self._consumer.assignment():
            # The position and not the last record's: an end may be a transaction's marker.
            end = self._consumer.highwater(assigned)
            if end is None:
                continue
            position = self._consumer.position(assigned, timeout_ms=0)
            if position is not None:
                end = max(end, self._ends.get(assigned, 0))
                lag[TopicPartition(*assigned)] = max(0, end - position)
        return lag

    def _close(self) -> None:
        if self._asking is not None:
            wait([self._asking], timeout=_ENDS_SECONDS)
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=int(_CLOSE_SECONDS * 1000))

    # ------------------------------------------------------------ on the thread for ends

    def _ask_for_ends(self, partitions: Sequence[KafkaTopicPartition]) -> None:
        with suppress(KafkaError):  # what was told last stands
            self._ends = self._consumer.end_offsets(
                partitions, timeout_ms=int(_ENDS_SECONDS * 1000)
            )

    # ------------------------------------------------------------ on the thread for commits

    def _commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        # not commit_async(), which tells of the coordinator that it had to look up first, and not
        # of the commit
        self._consumer.commit(kafka_offsets(offsets), timeout_ms=int(_COMMIT_SECONDS * 1000))

    def _committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata | None]:
        found = {}
        for partition in partitions:
            last = self._consumer.committed(
                KafkaTopicPartition(*partition),
                metadata=True,
                timeout_ms=int(_COMMIT_SECONDS * 1000),
            )
            found[partition] = last and OffsetAndMetadata(last.offset, last.metadata or "")
        return found
