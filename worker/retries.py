"""Requests that may succeed later: put on a topic of their own, and tried again after a delay.

The delay is the same for all, so the records of a partition are due in the order in which they
lie there, and none that is due waits behind one that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from pydantic import AwareDatetime, ValidationError

from worker.errors import Malformed, MalformedReason
from worker.schema import Published, Request, Verdict, now
from worker.types import Message, Record

RETRY_HEADER = "imagewarden-retry"


class Retry(Published):
    """What the header ``imagewarden-retry`` says, as JSON; the rest of the record is the request.

    ``attempts`` were made so far, ``number`` is that of the retry, from 1 on; ``supersedes`` is
    the verdict that stands until then.
    """

    number: int
    attempts: int
    supersedes: UUID
    due: AwareDatetime


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """At most ``attempts`` retries of a request, each ``delay_seconds`` after the last failure."""

    topic: str
    attempts: int
    delay_seconds: float

    def after(self, verdict: Verdict, request: Request, last: Retry | None) -> Retry | None:
        """The retry that follows a verdict, if one does."""
        number = last.number + 1 if last else 1
        if verdict.error is None or not verdict.error.retryable or number > self.attempts:
            return None
        due = now() + timedelta(seconds=self.delay_seconds)
        if request.deadline is not None and request.deadline <= due:
            return None
        return Retry(
            number=number, attempts=verdict.error.attempts, supersedes=verdict.verdict_id, due=due
        )

    def message(self, record: Record, retry: Retry) -> Message:
        """The request as it came, under its key, so that those of one item stay in order."""
        header = (RETRY_HEADER, retry.model_dump_json().encode())
        return Message(self.topic, record.key, record.value, (*record.trace_context, header))

    def seconds_until_due(self, record: Record) -> float:
        """How long a retry is still to wait, and no longer than the delay: those behind it wait
        too, and the clock it was written by may be wrong. What is no retry does not wait."""
        try:
            wait = (retry_of(record).due - now()).total_seconds()
        except Malformed:
            return 0.0
        return min(max(0.0, wait), self.delay_seconds)


def retry_of(record: Record) -> Retry:
    """Raises ``Malformed`` for a record that is no retry."""
    header = dict(record.headers).get(RETRY_HEADER)
    if header is None:
        raise Malformed(MalformedReason.INVALID, f"it has no header {RETRY_HEADER}")
    try:
        return Retry.model_validate_json(header)
    except ValidationError:
        raise Malformed(MalformedReason.INVALID, f"its header {RETRY_HEADER} is damaged") from None
