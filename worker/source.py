"""Consumes: records from Kafka, for as many as there is room, as a member of a group.

The consumer is not thread safe, and its calls block, so all of them run on one thread of their
own; its network loop is a second thread, on which a rebalance is announced. A rebalance asks the
event loop to let the work in flight of the revoked partitions finish, and goes on with what it
answers.

Partitions are assigned cooperatively: only those that move are revoked, while the work on all
others goes on. The older, eager protocol would be wrong here, and not just slow: kafka-python
keeps the position of a partition that is revoked and assigned again to the same member, so records
that were given up in between would never be read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog
from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import CommitFailedError, RebalanceInProgressError, RetriableError

from worker.broker import Options, open_client, record_of, retry_delays, servers, until_reachable
from worker.rebalance import Drain, Forget, Rebalances, kafka_offsets, readable
from worker.types import Record, TopicPartition

log = structlog.get_logger(__name__)

T = TypeVar("T")

_COMMIT_SECONDS = 5.0  # for the broker to answer; after that the group is kept alive in between
_CLOSE_SECONDS = 5.0


class KafkaSource:
    """``types.Source`` over a consumer group.

    ``poll_seconds`` is the longest a poll waits for records, and so the longest that a commit
    waits for its turn. ``fetch_bytes`` bounds what is read ahead from each broker, and
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
        poll_seconds: float = 0.1,
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
        self._consumer: Any = None
        self._network: Any = None
        self._rebalances: Any = None
        self._next_offset: dict[TopicPartition, int] = {}
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
        await until_reachable(
            lambda: self._call(self._open), client="consumer", bootstrap=self._bootstrap
        )
        delays = retry_delays()
        while missing := await self._call(self._missing_topics):
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
        """At most ``room`` records, or none after ``poll_seconds``; see ``types.Source``.

        Count the records before the next await: a rebalance may ask for them from then on.
        """
        if self._cancelled:
            raise RuntimeError("a cancelled poll took records with it: this source can only close")
        try:
            return await self._call(self._poll, room)
        except asyncio.CancelledError:
            self._cancelled = True
            raise

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See ``types.Source``. Waits while the group rebalances or no broker answers; meanwhile
        it keeps the membership alive itself, so it may be awaited instead of polling. Where
        records should keep coming, await it beside the polling."""
        while True:
            try:
                gone = await self._call(self._commit, offsets)
            except (CommitFailedError, RebalanceInProgressError):
                pass  # polling completes the rebalance, and tells what is still ours
            except RetriableError as error:
                log.warning("commit_retried", error=repr(error), bootstrap=self._bootstrap)
            else:
                if gone:
                    log.info("commit_skipped", why="no longer assigned", offsets=readable(gone))
                return
            await self._call(self._poll, 0)

    def lag(self) -> Mapping[TopicPartition, int]:
        """See ``types.Source``. Partitions of which nothing was fetched yet are left out."""
        return self._lag

    async def close(self) -> None:
        """Leave the group, after ``drain`` and ``forget`` of all that is assigned."""
        await self._call(self._close)
        self._thread.shutdown()

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
            self._consumer.resume(*self._consumer.assignment())
        else:
            self._consumer.pause(*self._consumer.assignment())
        polled = self._consumer.poll(
            timeout_ms=int(self._poll_seconds * 1000), max_records=max(1, room)
        )
        records = [record_of(read) for of_partition in polled.values() for read in of_partition]
        if len(records) > room:
            raise RuntimeError(f"polled {len(records)} records with room for {room}")
        self._lag = self._measured_lag(records)
        return records

    def _measured_lag(self, polled: Sequence[Record]) -> dict[TopicPartition, int]:
        self._next_offset |= {record.topic_partition: record.offset + 1 for record in polled}
        lag = {}
        for assigned in self._consumer.assignment():
            # the end as the fetches report it, for asking the broker would be I/O
            end = self._consumer.highwater(assigned)
            partition = TopicPartition(*assigned)
            position = self._next_offset.get(partition)
            if position is None and end is not None:
                position = self._consumer.position(assigned, timeout_ms=0)
            if position is not None and end is not None:
                self._next_offset[partition] = position
                lag[partition] = max(0, end - position)
        self._next_offset = {each: self._next_offset[each] for each in lag}
        return lag

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """Returns what was left out, because its partition is no longer ours."""
        ours = {tp: offset for tp, offset in offsets.items() if self._rebalances.owns(tp)}
        if ours:
            self._consumer.commit(kafka_offsets(ours), timeout_ms=int(_COMMIT_SECONDS * 1000))
        return {tp: offset for tp, offset in offsets.items() if tp not in ours}

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=int(_CLOSE_SECONDS * 1000))
