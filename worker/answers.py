"""From a record to the messages that answer it, and what is told of them.

Nothing is published here: when and together with what is a matter of delivery.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from worker import telemetry, tracing
from worker.errors import Malformed, MalformedReason
from worker.judge import Judge
from worker.retries import Retry, RetryPlan, retry_of
from worker.schema import Verdict, parse_request
from worker.seams import Publisher
from worker.types import Message, Record
from worker.verdicts import dead_letter_message, deciding, to_be_retried, verdict_message

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be published for a record, all of it acknowledged before its offset is done.

    A retry that came to what the last verdict said has no ``verdict``: that one stands.
    """

    messages: tuple[Message, ...]
    verdict: Verdict | None = None
    rejected: Malformed | None = None
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class AnswerTopics:
    verdicts: str
    dead_letters: str


class Answerer:
    """Answers the records of one topic. ``retrying``: it is the topic of retries.

    ``publisher`` says which messages its topics take; ``retries`` is None where nothing is tried
    again.
    """

    def __init__(
        self,
        *,
        judge: Judge,
        publisher: Publisher,
        topics: AnswerTopics,
        retries: RetryPlan | None,
        retrying: bool,
        request_bytes: int,
        worker: str,
    ) -> None:
        self._judge = judge
        self._publisher = publisher
        self._topics = topics
        self._retries = retries
        self._retrying = retrying
        self._request_bytes = request_bytes
        self._worker = worker

    async def answer(self, record: Record) -> Answer:
        try:
            if record.unreadable is not None:
                raise Malformed(MalformedReason.UNREADABLE, record.unreadable)
            request = parse_request(record.value, max_bytes=self._request_bytes)
            last = retry_of(record) if self._retrying else None
        except Malformed as malformed:
            return self.dead_letter(record, malformed)
        verdict = await self._judge.verdict(
            request,
            attempts=last.attempts if last else 0,
            supersedes=last.supersedes if last else None,
        )
        tracing.note(
            request_id=verdict.request_id,
            item_id=verdict.item_id,
            tenant=verdict.tenant,
            decision=verdict.decision,
            action=verdict.action,
            cache=verdict.cache,
            error=verdict.error.code.value if verdict.error else None,
        )
        retry = self._retries.after(verdict, request, last) if self._retries else None
        if retry:
            verdict = to_be_retried(verdict, retry.due)
        messages = []
        news = last is None or verdict.verdict_id != last.supersedes
        if news:
            context = tracing.context(record)
            messages.append(verdict_message(verdict, self._topics.verdicts, context))
        if self._retries and retry:
            messages.append(self._retries.message(record, retry))
        for message in messages:
            if not self._publisher.fits(message):
                return self.dead_letter(record, _too_large(message))
        return Answer(tuple(messages), verdict=verdict if news else None, retry=retry)

    def poison(self, record: Record) -> Answer:
        """Of a record that no process survived."""
        detail = "processes died while it was in work, the last one while it was tried alone"
        return self.dead_letter(record, Malformed(MalformedReason.POISON, detail))

    def dead_letter(self, record: Record, malformed: Malformed) -> Answer:
        """The record as it came; too large for the dead letters, or not to be read, its digest
        and coordinates instead."""
        whole, digest = (
            dead_letter_message(
                record, malformed, self._topics.dead_letters, worker=self._worker, whole=whole
            )
            for whole in (True, False)
        )
        tracing.note(dead_letter=malformed.reason.value)
        there = record.unreadable is None
        fitting = whole if there and self._publisher.fits(whole) else digest
        return Answer((fitting,), rejected=malformed)


def _too_large(message: Message) -> Malformed:
    return Malformed(
        MalformedReason.ANSWER_TOO_LARGE,
        f"what there is to say of it has {len(message.value or b'')} bytes, more than the topic "
        f"{message.topic} takes",
    )


# ---------------------------------------------------------------- what is told of an answer


def tell(answer: Answer, record: Record) -> None:
    """Counts and logs an answer that was published."""
    if answer.rejected is not None:
        telemetry.DEAD_LETTERS.labels(answer.rejected.reason.value).inc()
        _log.warning(
            "dead letter",
            reason=answer.rejected.reason.value,
            detail=answer.rejected.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
    elif (verdict := answer.verdict) is not None:
        telemetry.VERDICTS.labels(verdict.policy.id, verdict.decision, verdict.action).inc()
        tenant = telemetry.TENANTS.label(verdict.tenant)
        telemetry.TENANT_VERDICTS.labels(tenant, verdict.action).inc()
        telemetry.CATEGORY_PROBABILITY.observe(
            verdict.policy.id,
            ((one.id, one.probability) for one in (*verdict.categories, *verdict.shadow)),
        )
        if verdict.decision == "undetermined" and verdict.action == "allow":
            telemetry.FAIL_OPEN.labels(verdict.policy.id).inc()
        if verdict.listed is not None:
            listed = verdict.listed
            telemetry.LISTED.labels(verdict.policy.id, listed.id, listed.action).inc()
        if verdict.brake is not None:
            telemetry.BRAKED.labels(verdict.policy.id).inc()
        _count_shadow(verdict)
        _log.info("request", **_canonical(verdict, record))
    else:
        _log.info("retry without news", topic=record.topic, offset=record.offset)
    if answer.retry is not None:
        telemetry.RETRIES.inc()


def _count_shadow(verdict: Verdict) -> None:
    """What is enforced is counted as it would be without the brake, which judges no image."""
    enforced = verdict.brake.would_have_been if verdict.brake else verdict.decision
    for trial in verdict.shadow:
        telemetry.SHADOW.labels(verdict.policy.id, trial.id, enforced, trial.action).inc()


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
        "list": verdict.listed.id if verdict.listed else None,
        "braked": verdict.brake is not None,
        "error": verdict.error.code.value if verdict.error else None,
        "detail": verdict.error.detail if verdict.error else None,
        "retry_at": verdict.error.retry_at if verdict.error else None,
        "policy": f"{verdict.policy.id}@{verdict.policy.version}",
        "sha256": verdict.image.sha256 if verdict.image else None,
        "cache": verdict.cache,
        "ms": verdict.timings_ms,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
    }
