"""The main path: a record is polled, judged, answered, and only then committed.

Each record is one task that reads top to bottom in ``_answer``. What bounds the work is stated
where it is bounded: records between poll and commit here, images in work in ``examine``. A task
that fails with anything but the foreseen kinds of error ends the process, and with it the claim on
its records: another worker reads them again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from worker import telemetry, tracing
from worker.answers import Answer, Answerer, tell
from worker.delivery import Delivery
from worker.ledger import Ledger
from worker.poison import Standing
from worker.rejections import Rejections
from worker.seams import Source
from worker.solitude import Solitude
from worker.turns import Turns
from worker.types import Load, OffsetAndMetadata, Record, TopicPartition

_log = structlog.get_logger(__name__)

_ROOM_SHARE = 4  #: of the records in flight, one in so many are worth a poll
_WAIT_FOR_ROOM_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """``in_flight`` records at most are between poll and commit: each holds its request and its
    answer, so their product bounds what they hold in memory."""

    in_flight: int
    commit_interval_seconds: float
    drain_seconds: float


class _Taken(NamedTuple):
    of: TopicPartition
    at: float  #: when it was polled, on the monotonic clock


class Pipeline:
    """The records of one topic, its ``lane``.

    ``wait`` says for how many seconds a record is to be left alone first. ``solitude`` is shared
    by all pipelines of the process.
    """

    def __init__(
        self,
        *,
        lane: str,
        source: Source,
        answerer: Answerer,
        ledger: Ledger,
        delivery: Delivery,
        rejections: Rejections,
        solitude: Solitude,
        limits: Limits,
        wait: Callable[[Record], float],
    ) -> None:
        self._lane = lane
        self._source = source
        self._answerer = answerer
        self._ledger = ledger
        self._delivery = delivery
        self._rejections = rejections
        self._solitude = solitude
        self._limits = limits
        self._wait = wait
        self._turns = Turns()
        self._tasks: dict[asyncio.Task[None], _Taken] = {}
        self._begun: set[asyncio.Task[None]] = set()
        self._commit_wanted = asyncio.Event()
        self._committed = asyncio.Event()
        self._freed = asyncio.Event()
        self._waited = telemetry.STAGE_WAIT_SECONDS.labels("answer")
        self._worked = telemetry.STAGE_SECONDS.labels("answer")
        self._ages = telemetry.END_TO_END_SECONDS.labels(lane)
        self.polled_at = time.monotonic()
        self.committed_at = self.polled_at  #: all that was answered by then is committed

    @property
    def load(self) -> Load:
        """Records between poll and commit; from any thread."""
        return Load(len(self._tasks) + self._delivery.held, self._limits.in_flight)

    def oldest_polled_at(self) -> float | None:
        """Of the records not answered yet; from any thread."""
        return min((taken.at for taken in list(self._tasks.values())), default=None)

    # ------------------------------------------------------------ the loop

    async def run(self, stop: asyncio.Event) -> None:
        """Polls until ``stop``, then drains, commits and returns. The caller leaves the group."""
        async with asyncio.TaskGroup() as group:
            committing = group.create_task(self._commit_regularly())
            while not stop.is_set():
                records = await self._source.poll(await self._room())
                self.polled_at = time.monotonic()
                for record in records:
                    self._ledger.polled(record)
                    task = group.create_task(self._answer(record))
                    self._tasks[task] = _Taken(record.topic_partition, self.polled_at)
                    task.add_done_callback(self._ended)
                telemetry.REQUESTS.labels(self._lane).inc(len(records))
                self._observe()
            unfinished = await self._finish({taken.of for taken in self._tasks.values()})
            for task in (committing, *unfinished):
                task.cancel()
        await self._commit_last()
        self._observe()

    async def drain(
        self, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata]:
        """Lets the work in flight of ``partitions`` finish, within the deadline; returns the
        offsets to commit before they are let go."""
        await self._finish(partitions)
        return await self._delivery.hand_over(partitions)

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """What finishes later for ``partitions`` counts no more: their new owner reads it again."""
        self._leave_to_others(partitions)
        self._turns.forget(partitions)
        self._ledger.forget(partitions)
        self._delivery.forget(partitions)
        for topic, partition in partitions:
            telemetry.CONSUMER_LAG.remove(topic, partition)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._begun.discard(task)
        self._freed.set()

    async def _room(self) -> int:
        """For how many records to poll: waits for enough to be worth it, as a poll for one takes
        as long as for many; not for long, as a member of a group must poll."""
        worthwhile = -(-self._limits.in_flight // _ROOM_SHARE)
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_FOR_ROOM_SECONDS):
                while self._free() < worthwhile:
                    self._freed.clear()
                    await self._freed.wait()
        return max(0, self._free())

    def _free(self) -> int:
        return self._limits.in_flight - len(self._tasks) - self._delivery.held

    def _leave_to_others(self, partitions: Collection[TopicPartition]) -> None:
        """Work that has not begun need not begin: it may wait long, and for a rebalance to end."""
        for task, taken in self._tasks.items():
            if taken.of in partitions and task not in self._begun:
                task.cancel()

    async def _finish(self, partitions: Collection[TopicPartition]) -> set[asyncio.Task[None]]:
        self._leave_to_others(partitions)
        tasks = [task for task, taken in self._tasks.items() if taken.of in partitions]
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
            try:
                async with asyncio.timeout(self._limits.commit_interval_seconds):
                    await self._commit_wanted.wait()
            except TimeoutError:
                pass
            self._commit_wanted.clear()
            began = time.monotonic()
            if unopened := self._ledger.unopened():
                self._ledger.opened(await self._source.committed(unopened))
            if await self._delivery.commit():
                self.committed_at = began
            self._freed.set()
            self._committed.set()
            self._committed = asyncio.Event()

    async def _commit_last(self) -> None:
        try:
            async with asyncio.timeout(self._limits.drain_seconds):
                if offsets := await self._delivery.hand_over(self._ledger.partitions()):
                    await self._source.commit(offsets)
                    self._ledger.committed(offsets)
        except TimeoutError:
            _log.warning(
                "no broker took the last commit; what it covers will be read again",
                deadline_seconds=self._limits.drain_seconds,
            )

    def _observe(self) -> None:
        telemetry.IN_FLIGHT.labels(self._lane).set(len(self._tasks) + self._delivery.held)
        for (topic, partition), lag in self._source.lag().items():
            telemetry.CONSUMER_LAG.labels(topic, partition).set(lag)

    # ------------------------------------------------------------ one record

    async def _answer(self, record: Record) -> None:
        """Its answer, acknowledged; then, and only then, its offset is done."""
        item = None if record.key is None else (record.topic_partition, record.key)
        with self._turns.ticket(item) as turn:
            if seconds := self._wait(record):
                await asyncio.sleep(seconds)
            with tracing.request(record):
                await self._answer_in_turn(record, turn)

    async def _answer_in_turn(self, record: Record, turn: Awaitable[None] | None) -> None:
        started = time.perf_counter()
        async with self._in_work(record) as poison:
            answer = await self._worked_out(record, poison=poison)
        worked_out = time.perf_counter()
        if turn is not None:
            await asyncio.shield(turn)
        its_turn = time.perf_counter()
        self._waited.observe(its_turn - worked_out)
        self._rejections.count(rejected=answer.rejected is not None)

        def told() -> None:
            tell(answer, record)
            acknowledged = time.perf_counter()
            self._worked.observe(acknowledged - its_turn)
            telemetry.REQUEST_SECONDS.observe(acknowledged - started)
            if record.timestamp_ms > 0:  # else its producer gave it none
                self._ages.observe(max(0.0, time.time() - record.timestamp_ms / 1000))

        await self._delivery.release(record, answer.messages, told)

    async def _worked_out(self, record: Record, *, poison: bool) -> Answer:
        if poison:
            return self._answerer.poison(record)
        try:
            return await self._answerer.answer(record)
        except (Exception, asyncio.CancelledError) as error:
            if _this_task().cancelling():
                raise
            self._ledger.ends_the_process(record)
            if isinstance(error, asyncio.CancelledError):  # of a task that nobody would miss
                raise RuntimeError(
                    f"a stage ended under the record of {record.topic_partition} at offset "
                    f"{record.offset}"
                ) from error
            raise

    @asynccontextmanager
    async def _in_work(self, record: Record) -> AsyncIterator[bool]:
        """Work on ``record``, once a commit tells that it is in work; whether it is poison."""
        while (standing := self._ledger.standing(record)) is Standing.UNMARKED:
            await self._next_commit()
        if standing is Standing.SUSPECT:
            async with self._solitude.alone():
                await self._commits_until(record, trying=True)
                self._begin()
                yield False
                await self._commits_until(record, trying=False)
        else:
            async with self._solitude.shared():
                self._begin()
                yield standing is Standing.POISON

    def _begin(self) -> None:
        self._begun.add(_this_task())

    async def _commits_until(self, record: Record, *, trying: bool) -> None:
        """A commit names ``record`` as the one that is tried alone, or names it no more."""
        self._ledger.try_alone(record, trying=trying)
        while self._ledger.holds(record) and self._ledger.tried_alone(record) is not trying:
            await self._next_commit()

    async def _next_commit(self) -> None:
        committed = self._committed
        self._commit_wanted.set()
        await committed.wait()


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task
