"""Feedback and verdicts read from their topics and joined.

The readers are in no consumer group and remember nothing, so records that are no feedback are
counted and logged, and no dead letters are made of them: each start would make them again, and the
topic itself keeps them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import structlog
from pydantic import ValidationError

from worker import telemetry
from worker.errors import Malformed, MalformedReason
from worker.feedback import parse_feedback
from worker.past.feedback import FeedbackJoin
from worker.schema import Verdict, now
from worker.settings import Settings
from worker.topics import TopicReader
from worker.types import Record

_log = structlog.get_logger(__name__)


class FeedbackTopics:
    """Reads both topics into ``join``, as ``async with FeedbackTopics(...) as topics``.

    Entering raises what entering a ``TopicReader`` does.
    """

    def __init__(self, settings: Settings, *, items: int) -> None:
        self.join = FeedbackJoin(items=items)
        self._settings = settings

    async def __aenter__(self) -> Self:
        kafka = self._settings.kafka
        async with AsyncExitStack() as parts:
            self._feedback = await parts.enter_async_context(self._reader(kafka.feedback_topic))
            self._verdicts = await parts.enter_async_context(self._reader(kafka.verdicts_topic))
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._parts.aclose()

    async def read(self, since: datetime) -> None:
        """The feedback that was published from then on, to the end as it is now, and verdicts from
        twice as far back, since people may take as long to look at them.

        Feedback first: of the items that it is on, verdicts are remembered before others.
        """
        async for record in self._feedback.read_all(since=max(0.0, since.timestamp())):
            self._take_feedback(record)
        earliest = 2 * since.timestamp() - now().timestamp()
        async for record in self._verdicts.read_all(since=max(0.0, earliest)):
            self._take_verdict(record)

    async def follow(self) -> None:
        """What comes after that, without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_feedback(self._feedback.read_on()))
            group.create_task(self._follow_verdicts(self._verdicts.read_on()))

    async def _follow_feedback(self, records: AsyncIterator[Record]) -> None:
        async for record in records:
            self._take_feedback(record)

    async def _follow_verdicts(self, records: AsyncIterator[Record]) -> None:
        async for record in records:
            self._take_verdict(record)

    def _reader(self, topic: str) -> TopicReader:
        """Of what is committed: a transaction that was aborted said nothing."""
        settings = self._settings
        return TopicReader(
            bootstrap=settings.kafka.bootstrap,
            topic=topic,
            client_id=settings.worker,
            options={**settings.kafka_security.options(), "isolation_level": "read_committed"},
        )

    def _take_feedback(self, record: Record) -> None:
        try:
            if record.unreadable is not None:
                raise Malformed(MalformedReason.UNREADABLE, record.unreadable)
            feedback = parse_feedback(record.value)
        except Malformed as malformed:
            telemetry.FEEDBACK_MALFORMED.labels(malformed.reason.value).inc()
            reason = malformed.reason.value
            _log.warning("no feedback", reason=reason, detail=malformed.detail, **_place(record))
            return
        told_at = datetime.fromtimestamp(record.timestamp_ms / 1000, UTC)
        # By a clock that is fast it would stay in the window for ever
        self.join.add_feedback(feedback, min(feedback.decided_at or told_at, told_at))

    def _take_verdict(self, record: Record) -> None:
        try:
            verdict = Verdict.model_validate_json(record.value or b"")
        except ValidationError:
            _log.warning("no verdict", **_place(record))
        else:
            self.join.add_verdict(verdict)


def _place(record: Record) -> dict[str, str | int]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
