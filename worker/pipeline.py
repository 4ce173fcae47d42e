"""The main path: a record is polled, judged, answered, and only then committed.

Each record is one task that reads top to bottom in ``_answer``. What bounds the work is stated
where it is bounded: records between poll and commit here, images in work in ``examine``. A task
that fails with anything but the three foreseen kinds of error ends the process, and with it the
claim on its records: another worker reads them again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog

from worker import telemetry
from worker.commit import Watermarks
from worker.errors import Malformed
from worker.judge import Judge
from worker.schema import Verdict, parse_request
from worker.types import Publisher, Record, Source, TooLarge, TopicPartition
from worker.verdicts import dead_letter_message, deciding, verdict_message

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """``in_flight`` records at most are between poll and commit: each holds its request (at most
    ``request_bytes``) and its answer, so their product bounds what they hold in memory."""

    in_flight: int
    request_bytes: int
    commit_interval_seconds: float
    drain_seconds: float


@dataclass(frozen=True, slots=True)
class Topics:
    verdicts: str
    dead_letters: str


class Pipeline:
    def __init__(
        self,
        *,
        source: Source,
        publisher: Publisher,
        judge: Judge,
        topics: Topics,
        limits: Limits,
        worker: str,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._judge = judge
        self._topics = topics
        self._limits = limits
        self._worker = worker
        self._watermarks = Watermarks()
        self._tasks: dict[asyncio.Task[None], TopicPartition] = {}
        self.polled_at = time.monotonic()

    # ------------------------------------------------------------ the loop

    async def run(self, stop: asyncio.Event) -> None:
        """Polls until ``stop``, then drains, commits and returns. The caller leaves the group."""
        async with asyncio.TaskGroup() as group:
            committing = group.create_task(self._commit_regularly())
            while not stop.is_set():
                records = await self._source.poll(self._limits.in_flight - len(self._tasks))
                self.polled_at = time.monotonic()
                for record in records:
                    self._watermarks.polled(record)
                    task = group.create_task(self._answer(record))
                    self._tasks[task] = record.topic_partition
                    task.add_done_callback(self._tasks.__delitem__)
                telemetry.REQUESTS.inc(len(records))
                self._observe()
            for task in (committing, *await self._finish(list(self._tasks))):
                task.cancel()
        await self._commit_last()
        self._observe()

    async def drain(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Lets the work in flight of ``partitions`` finish, within the deadline; returns the
        offsets to commit before they are let go."""
        await self._finish([task for task, of in self._tasks.items() if of in partitions])
        offsets = self._watermarks.committable()
        return {partition: offsets[partition] for partition in partitions if partition in offsets}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """What finishes later for ``partitions`` counts no more: their new owner reads it again."""
        self._watermarks.forget(partitions)
        for topic, partition in partitions:
            telemetry.CONSUMER_LAG.remove(topic, partition)

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        if not tasks:
            return set()
        _, unfinished = await asyncio.wait(tasks, timeout=self._limits.drain_seconds)
        if unfinished:
            _log.warning(
                "drain deadline passed; these requests will be read again",
                unfinished=len(unfinished),
                deadline_seconds=self._limits.drain_seconds,
            )
        return unfinished

    async def _commit_regularly(self) -> None:
        """Beside the polls, not between them: a commit may have to wait for a rebalance."""
        while True:
            await asyncio.sleep(self._limits.commit_interval_seconds)
            await self._commit()

    async def _commit(self) -> None:
        if offsets := self._watermarks.committable():
            await self._source.commit(offsets)
            self._watermarks.committed(offsets)

    async def _commit_last(self) -> None:
        try:
            async with asyncio.timeout(self._limits.drain_seconds):
                await self._commit()
        except TimeoutError:
            _log.warning(
                "no broker took the last commit; what it covers will be read again",
                deadline_seconds=self._limits.drain_seconds,
            )

    def _observe(self) -> None:
        telemetry.IN_FLIGHT.set(len(self._tasks))
        for (topic, partition), lag in self._source.lag().items():
            telemetry.CONSUMER_LAG.labels(topic, partition).set(lag)

    # ------------------------------------------------------------ one record

    async def _answer(self, record: Record) -> None:
        """A verdict or a dead letter, acknowledged; then, and only then, the offset is done."""
        started = time.perf_counter()
        try:
            request = parse_request(record.value, max_bytes=self._limits.request_bytes)
        except Malformed as malformed:
            await self._bury(record, malformed)
        else:
            verdict = await self._judge.verdict(request)
            await self._publisher.publish(verdict_message(verdict, record, self._topics.verdicts))
            _count(verdict)
            _log.info("request", **_canonical(verdict, record))
        self._watermarks.done(record)
        telemetry.REQUEST_SECONDS.observe(time.perf_counter() - started)

    async def _bury(self, record: Record, malformed: Malformed) -> None:
        """The record as it came, to the dead letters; too large for them, its digest instead."""
        for whole in (True, False):
            message = dead_letter_message(
                record, malformed, self._topics.dead_letters, worker=self._worker, whole=whole
            )
            try:
                await self._publisher.publish(message)
                break
            except TooLarge:
                if not whole:
                    raise
        telemetry.DEAD_LETTERS.labels(malformed.reason.value).inc()
        _log.warning(
            "dead letter",
            reason=malformed.reason.value,
            detail=malformed.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )


def _count(verdict: Verdict) -> None:
    telemetry.VERDICTS.labels(verdict.policy.id, verdict.decision, verdict.action).inc()
    if verdict.decision == "undetermined" and verdict.action == "allow":
        telemetry.FAIL_OPEN.labels(verdict.policy.id).inc()


def _canonical(verdict: Verdict, record: Record) -> dict[str, object]:
    """The one line that tells all of a request: enough to find it, and why it was decided so."""
    category = deciding(verdict)
    return {
        "request_id": verdict.request_id,
        "item_id": verdict.item_id,
        "tenant": verdict.tenant,
        "decision": verdict.decision,
        "action": verdict.action,
        "category": category.id if category else None,
        "probability": round(category.probability, 4) if category else None,
        "error": verdict.error.code.value if verdict.error else None,
        "detail": verdict.error.detail if verdict.error else None,
        "policy": f"{verdict.policy.id}@{verdict.policy.version}",
        "sha256": verdict.image.sha256 if verdict.image else None,
        "cache": verdict.cache,
        "ms": verdict.timings_ms,
        "partition": record.partition,
        "offset": record.offset,
    }
