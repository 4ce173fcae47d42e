"""Building what is published: verdicts and dead letters. Pure, apart from the time of day."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from pydantic import TypeAdapter

from worker.errors import Malformed, Stage, Unexaminable
from worker.examined import Examined, Recognised
from worker.policy import Policy
from worker.schema import (
    DEAD_LETTER_HEADER,
    Action,
    BrakeRef,
    CategoryVerdict,
    Coordinates,
    DeadLetter,
    ErrorRef,
    ImageRef,
    ListRef,
    ModelRef,
    PolicyRef,
    Request,
    Verdict,
    now,
    verdict_id,
)
from worker.score import CategoryScore, Decided
from worker.types import Headers, ImageFacts, Message, ModelInfo, Record

#: An item id has at most 256 characters, of at most four bytes each.
_KEY_BYTES = 1024

_CATEGORIES = TypeAdapter(tuple[CategoryVerdict, ...])


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
    facts = examined.embedding.facts
    decision = decided.decision.value
    return _verdict(
        request,
        policy,
        model,
        worker,
        supersedes=supersedes,
        seen=facts.sha256,
        status="ok",
        decision=decision,
        action=decision,
        categories=_categories(decided.categories),
        shadow=_categories(decided.shadow),
        image=_image(facts, scored=len(set(facts.rows)), worst_frame=facts.rows[decided.worst_row]),
        cache=examined.tier,
        timings_ms={**examined.timings_ms, "total": total_ms},
    )


def listed_verdict(
    request: Request,
    recognised: Recognised,
    policy: Policy,
    model: ModelInfo,
    worker: str,
    total_ms: float,
    supersedes: UUID | None = None,
) -> Verdict:
    """Of an image that one of the policy's lists settles."""
    listed = recognised.listed
    action = cast(Action, listed.action.value)
    return _verdict(
        request,
        policy,
        model,
        worker,
        supersedes=supersedes,
        seen=recognised.facts.sha256,
        status="ok",
        decision=action,
        action=action,
        listed=ListRef(id=listed.id, action=action, distance=listed.distance),
        image=_image(recognised.facts, scored=0, worst_frame=0),
        cache=recognised.tier,
        timings_ms={**recognised.timings_ms, "total": total_ms},
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


def braked(verdict: Verdict, brake: BrakeRef, model: ModelInfo) -> Verdict:
    """What is to be blocked is reviewed. An undetermined decision stays one, and only its action
    changes."""
    decision = "review" if verdict.decision == "block" else verdict.decision
    if verdict.image is not None:
        seen = verdict.image.sha256
    else:
        assert verdict.error is not None, "an image that was not examined has an error"
        seen = verdict.error.code.value
    return verdict.model_copy(
        update={
            "verdict_id": verdict_id(
                request_id=verdict.request_id,
                policy_digest=verdict.policy.digest,
                model_digest=model.digest,
                seen=seen,
                decision=decision,
                action="review",
            ),
            "decision": decision,
            "action": "review",
            "brake": brake,
        }
    )


def _image(facts: ImageFacts, *, scored: int, worst_frame: int) -> ImageRef:
    return ImageRef(
        sha256=facts.sha256,
        perceptual_hash=facts.perceptual_hash,
        type=facts.media_type,
        width=facts.width,
        height=facts.height,
        bytes=facts.bytes,
        frames=facts.frames,
        frames_scored=scored,
        worst_frame=worst_frame,
    )


def _categories(scores: tuple[CategoryScore, ...]) -> tuple[CategoryVerdict, ...]:
    """Their fields have the same names."""
    return _CATEGORIES.validate_python(scores, from_attributes=True)


def deciding(verdict: Verdict) -> CategoryVerdict | None:
    """The category that decided; of an allowed image, the one that came closest to its threshold.

    None where nothing was scored.
    """

    def closeness(category: CategoryVerdict) -> float:
        return category.probability - (1.0 if category.threshold is None else category.threshold)

    decision = verdict.brake.would_have_been if verdict.brake else verdict.decision
    severest = [c for c in verdict.categories if c.action == decision]
    return max(severest or verdict.categories, key=closeness, default=None)


def to_be_retried(verdict: Verdict, at: datetime) -> Verdict:
    """The same, telling that it is not the last word."""
    assert verdict.error is not None
    error = verdict.error.model_copy(update={"retry_at": at})
    return verdict.model_copy(update={"error": error})


def verdict_message(verdict: Verdict, topic: str, trace_context: Headers) -> Message:
    """Under the item's key."""
    return Message(
        topic=topic,
        key=verdict.item_id.encode(),
        value=verdict.model_dump_json().encode(),
        headers=trace_context,
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
