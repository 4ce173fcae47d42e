"""Building what is published: verdicts and dead letters. Pure, apart from the time of day."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from worker.errors import Malformed, Stage, Unexaminable
from worker.examine import Examined
from worker.policy import Policy
from worker.schema import (
    DEAD_LETTER_HEADER,
    Action,
    CategoryVerdict,
    Coordinates,
    DeadLetter,
    ErrorRef,
    ImageRef,
    ModelRef,
    PolicyRef,
    Request,
    Verdict,
    now,
    verdict_id,
)
from worker.score import CategoryScore, Decided
from worker.types import Message, ModelInfo, Record

#: W3C trace context of the request, carried on by its verdict.
TRACE_HEADERS = frozenset({"traceparent", "tracestate"})

#: An item id has at most 256 characters, of at most four bytes each.
_KEY_BYTES = 1024


def build_verdict(
    request: Request,
    examined: Examined,
    decided: Decided,
    policy: Policy,
    model: ModelInfo,
    worker: str,
    total_ms: float,
    supersedes: UUID | None = None,
) -> Verdict:
    """Of an image that was examined."""
    decision = decided.decision.value
    return _verdict(
        request,
        policy,
        model,
        worker,
        supersedes=supersedes,
        seen=examined.embedding.key.sha256,
        status="ok",
        decision=decision,
        action=decision,
        categories=_categories(decided.categories),
        shadow=_categories(decided.shadow),
        image=_image(examined, decided),
        cache=examined.tier,
        timings_ms={**examined.timings_ms, "total": total_ms},
    )


def undetermined_verdict(
    request: Request,
    failure: Unexaminable,
    policy: Policy,
    model: ModelInfo,
    worker: str,
    total_ms: float,
    supersedes: UUID | None = None,
    attempts: int = 0,
) -> Verdict:
    """Of an image that could not be examined: what that means, its policy says. ``attempts`` were
    made before these."""
    return _verdict(
        request,
        policy,
        model,
        worker,
        supersedes=supersedes,
        seen=failure.code.value,
        status="error",
        decision="undetermined",
        action=policy.on_error.value,
        error=ErrorRef(
            code=failure.code,
            stage=failure.stage,
            detail=failure.detail,
            retryable=failure.retryable,
            attempts=attempts + failure.attempts,
        ),
        timings_ms={"total": total_ms},
    )


def _verdict(
    request: Request, policy: Policy, model: ModelInfo, worker: str, *, seen: str, **said: Any
) -> Verdict:
    return Verdict(
        verdict_id=verdict_id(
            request_id=request.request_id,
            policy_digest=policy.digest,
            model_digest=model.digest,
            seen=seen,
            decision=said["decision"],
            action=said["action"],
        ),
        request_id=request.request_id,
        item_id=request.item_id,
        tenant=request.tenant,
        policy=PolicyRef(id=policy.id, version=policy.version, digest=policy.digest),
        model=ModelRef(
            name=model.name,
            weights_digest=model.weights_digest,
            preprocess_digest=model.preprocess.digest,
            precision=model.precision,
        ),
        metadata=request.metadata,
        worker=worker,
        produced_at=now(),
        **said,
    )


def _image(examined: Examined, decided: Decided) -> ImageRef:
    facts = examined.embedding.facts
    return ImageRef(
        sha256=facts.sha256,
        perceptual_hash=facts.perceptual_hash,
        type=facts.media_type,
        width=facts.width,
        height=facts.height,
        bytes=facts.bytes,
        frames=facts.frames,
        frames_scored=len(set(facts.rows)),
        worst_frame=facts.rows[decided.worst_row],
    )


def _categories(scores: Iterable[CategoryScore]) -> tuple[CategoryVerdict, ...]:
    return tuple(
        CategoryVerdict(
            id=score.id,
            parent=score.parent,
            probability=score.probability,
            margin=score.margin,
            threshold=score.threshold,
            action=cast(Action, score.action.value),
            loudest_for=score.loudest_for,
            loudest_against=score.loudest_against,
            calibrated=score.calibrated,
        )
        for score in scores
    )


def deciding(verdict: Verdict) -> CategoryVerdict | None:
    """The category that decided; of an allowed image, the one that came closest to its threshold.

    None where nothing was scored.
    """

    def closeness(category: CategoryVerdict) -> float:
        return category.probability - (1.0 if category.threshold is None else category.threshold)

    severest = [c for c in verdict.categories if c.action == verdict.decision]
    return max(severest or verdict.categories, key=closeness, default=None)


def to_be_retried(verdict: Verdict, at: datetime) -> Verdict:
    """The same, telling that it is not the last word."""
    assert verdict.error is not None
    error = verdict.error.model_copy(update={"retry_at": at})
    return verdict.model_copy(update={"error": error})


def verdict_message(verdict: Verdict, record: Record, topic: str) -> Message:
    """Under the item's key, with the trace context of the request's record."""
    return Message(
        topic=topic,
        key=verdict.item_id.encode(),
        value=verdict.model_dump_json().encode(),
        headers=tuple(header for header in record.headers if header[0] in TRACE_HEADERS),
    )


def dead_letter_message(
    record: Record, malformed: Malformed, topic: str, *, worker: str, whole: bool
) -> Message:
    """The record as it came, with a header that says why.

    If not ``whole``, what stands in for it is small whatever was large: that header, and the key
    if it may be an item's.
    """
    value = record.value or b""
    why = DeadLetter(
        reason=malformed.reason,
        detail=malformed.detail,
        stage=Stage.PARSE,
        attempts=1,
        source=Coordinates(topic=record.topic, partition=record.partition, offset=record.offset),
        value_sha256=hashlib.sha256(value).hexdigest(),
        value_bytes=len(value),
        value_included=whole,
        worker=worker,
        produced_at=now(),
    )
    # A record that was replayed and failed again carries the header of its first failure
    original = tuple(header for header in record.headers if header[0] != DEAD_LETTER_HEADER)
    header = (DEAD_LETTER_HEADER, why.model_dump_json().encode())
    if whole:
        return Message(topic, record.key, value, (*original, header))
    key = record.key if len(record.key or b"") <= _KEY_BYTES else None
    return Message(topic, key, b"", (header,))
