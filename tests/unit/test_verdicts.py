from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of, with_head
from worker.errors import ErrorCode, Malformed, MalformedReason, Stage, Unexaminable
from worker.examined import Examined, Recognised
from worker.lists import Listed
from worker.policy import Decision, Head, Policy
from worker.schema import DEAD_LETTER_HEADER, BrakeRef, DeadLetter, ListRef, Request, Verdict
from worker.score import decide
from worker.types import Embedding, EmbeddingKey, FramePlan, ImageFacts, Record
from worker.verdicts import (
    braked,
    build_verdict,
    dead_letter_message,
    deciding,
    listed_verdict,
    undetermined_verdict,
    verdict_message,
)

ENCODER = FakeEncoder()
RED = category()
GREEN = category("colour.green", prompts=["green"], contrast=["black"])


def request(**changes: Any) -> Request:
    fields = {"schema_version": 1, "request_id": "r", "item_id": "i", "url": "http://h/p"}
    return Request(**{**fields, **changes})


def verdict_of(
    colours: str, policy: Policy, *, frames: tuple[int, ...] | None = None, **changes: Any
) -> Verdict:
    """Of an image whose rows have these colours and come from these frames."""
    rows = ENCODER.encode_texts(colours.split()).astype(np.float16)
    sha256 = hashlib.sha256(colours.encode()).hexdigest()
    frames = frames or tuple(range(len(rows)))
    facts = ImageFacts(sha256, "f" * 64, "image/gif", 3, 4, 99, 50, frames)
    key = EmbeddingKey(sha256, ENCODER.info.digest, FramePlan().digest)
    asked = request(**changes)
    return build_verdict(
        asked,
        Examined(Embedding(key, rows, facts), "redis", {"fetch": 1.5}),
        decide(compiled_of(policy, ENCODER), rows, asked.tenant),
        policy,
        ENCODER.info,
        "worker-1",
        2.5,
    )


def undetermined_of(policy: Policy, *, retryable: bool = False) -> Verdict:
    failure = Unexaminable(
        ErrorCode.FETCH_TIMEOUT, Stage.FETCH, "too slow", retryable=retryable, attempts=3
    )
    return undetermined_verdict(request(), failure, policy, ENCODER.info, "worker-1", 2.5)


def listed_of(action: Decision, policy: Policy) -> Verdict:
    facts = ImageFacts("a" * 64, "f" * 64, "image/gif", 3, 4, 99, 50, (0, 49))
    recognised = Recognised(Listed("known", action, 7), facts, "none", {"decode": 1.5})
    return listed_verdict(request(), recognised, policy, ENCODER.info, "worker-1", 2.5)


BRAKE = BrakeRef(share=0.4, requests=300, scope="fleet")


def record(**changes: Any) -> Record:
    fields = {"topic": "requests", "partition": 3, "offset": 42, "key": b"k", "value": b"v"}
    return Record(**{**fields, **changes})


def letter_of(headers: tuple[tuple[str, bytes], ...]) -> DeadLetter:
    return DeadLetter.model_validate_json(dict(headers)[DEAD_LETTER_HEADER])


MALFORMED = Malformed(MalformedReason.NOT_JSON, "the value is not JSON")


# ---------------------------------------------------------------- verdicts


def test_verdict_repeats_what_identifies_its_request() -> None:
    verdict = verdict_of("red", policy_of(RED), tenant="shop", metadata={"a": [1, None]})
    assert (verdict.request_id, verdict.item_id, verdict.tenant) == ("r", "i", "shop")
    assert verdict.metadata == {"a": [1, None]}
    assert verdict.worker == "worker-1"


def test_verdict_names_what_judged() -> None:
    policy, info = policy_of(RED), ENCODER.info
    verdict = verdict_of("red", policy)
    assert verdict.policy.model_dump() == {"id": "test", "version": 1, "digest": policy.digest}
    assert verdict.model.model_dump() == {
        "name": info.name,
        "weights_digest": info.weights_digest,
        "preprocess_digest": info.preprocess.digest,
        "precision": info.precision,
    }


def test_examined_image_has_its_decision_as_its_action() -> None:
    red, blue = (verdict_of(colour, policy_of(RED)) for colour in ("red", "blue"))
    assert (red.status, red.decision, red.action) == ("ok", "review", "review")
    assert (blue.status, blue.decision, blue.action) == ("ok", "allow", "allow")
    assert red.error is None


def test_category_says_what_it_was_held_against_and_which_prompts_were_loudest() -> None:
    policy = policy_of(category(prompts=["red", "white"], contrast=["blue", "black"]))
    [scored] = verdict_of("red", policy).categories
    assert (scored.id, scored.threshold, scored.action) == ("colour.red", 0.5, "review")
    assert scored.loudest_for == "red"
    assert not scored.calibrated


def test_category_says_how_severe_it_is_and_which_exception_dampened_it() -> None:
    dampened = category(exceptions=["a red poster"], severity={"some": 0.1, "all": 0.9})
    [scored] = verdict_of("red", policy_of(dampened)).categories
    assert (scored.severity, scored.dampened_by) == ("some", "a red poster")
    [plain] = verdict_of("red", policy_of(RED)).categories
    assert (plain.severity, plain.dampened_by) == (None, None)


def test_category_of_a_head_alone_names_no_prompts() -> None:
    info = ENCODER.info
    head = Head("h", "sha256:h", info.space, (1.0,) * info.dimension, 0.0)
    policy = with_head(policy_of(RED), "colour.red", head, alone=True)
    [scored] = verdict_of("red", policy).categories
    assert (scored.loudest_for, scored.loudest_against) == (None, None)


def test_category_on_trial_is_told_apart_and_decides_nothing() -> None:
    verdict = verdict_of("red", policy_of({**RED, "mode": "shadow"}, GREEN))
    assert [each.id for each in verdict.categories] == ["colour.green"]
    assert [(each.id, each.action) for each in verdict.shadow] == [("colour.red", "review")]
    assert verdict.decision == "allow"


def test_worst_frame_is_an_index_into_the_file_not_into_the_rows() -> None:
    verdict = verdict_of("blue black red blue", policy_of(RED), frames=(0, 0, 17, 49))
    assert verdict.image is not None
    assert verdict.image.worst_frame == 17
    assert (verdict.image.frames, verdict.image.frames_scored) == (50, 3)


def test_verdict_tells_the_tier_and_the_time_of_each_stage() -> None:
    verdict = verdict_of("red", policy_of(RED))
    assert verdict.cache == "redis"
    assert verdict.timings_ms == {"fetch": 1.5, "total": 2.5}


@pytest.mark.parametrize("action", ["allow", "review", "block"])
def test_unexamined_image_gets_the_action_its_policy_says(action: str) -> None:
    verdict = undetermined_of(policy_of(RED, on_error=action))
    assert (verdict.status, verdict.decision, verdict.action) == ("error", "undetermined", action)
    assert verdict.image is None
    assert verdict.categories == ()


def test_unexamined_image_tells_what_failed_and_whether_trying_again_may_help() -> None:
    error = undetermined_of(policy_of(RED), retryable=True).error
    assert error is not None
    assert error.model_dump() == {
        "code": ErrorCode.FETCH_TIMEOUT,
        "stage": Stage.FETCH,
        "detail": "too slow",
        "retryable": True,
        "attempts": 3,
        "retry_at": None,
    }


# ---------------------------------------------------------------- lists and brakes


@pytest.mark.parametrize("action", [Decision.ALLOW, Decision.REVIEW, Decision.BLOCK])
def test_image_on_a_list_gets_what_the_list_says_and_was_not_scored(action: Decision) -> None:
    verdict = listed_of(action, policy_of(RED))
    assert (verdict.status, verdict.decision, verdict.action) == ("ok", action, action)
    assert verdict.listed == ListRef(id="known", action=action.value, distance=7)
    assert (verdict.categories, verdict.shadow) == ((), ())
    assert verdict.image is not None
    assert (verdict.image.frames, verdict.image.frames_scored) == (50, 0)
    assert verdict.image.perceptual_hash == "f" * 64
    assert (verdict.cache, verdict.timings_ms) == ("none", {"decode": 1.5, "total": 2.5})
    assert deciding(verdict) is None


def test_verdict_that_is_braked_asks_for_a_review_and_says_what_it_would_have_been() -> None:
    blocking = verdict_of("red", policy_of({**RED, "block": 0.6, "block_uncalibrated": True}))
    assert blocking.decision == "block"
    verdict = braked(blocking, BRAKE, ENCODER.info)
    assert (verdict.decision, verdict.action, verdict.brake) == ("review", "review", BRAKE)
    assert verdict.brake is not None
    assert verdict.brake.would_have_been == "block"
    assert verdict.categories == blocking.categories
    assert deciding(verdict) == blocking.categories[0]


def test_braked_verdict_has_the_id_of_one_that_asked_for_a_review_by_itself() -> None:
    policy = policy_of(RED)
    review = listed_of(Decision.REVIEW, policy)
    verdict = braked(listed_of(Decision.BLOCK, policy), BRAKE, ENCODER.info)
    assert verdict.verdict_id == review.verdict_id
    assert verdict.verdict_id != listed_of(Decision.BLOCK, policy).verdict_id


def test_image_that_nobody_examined_stays_undetermined_when_it_is_braked() -> None:
    blocking = undetermined_of(policy_of(RED, on_error="block"))
    verdict = braked(blocking, BRAKE, ENCODER.info)
    assert (verdict.status, verdict.decision, verdict.action) == ("error", "undetermined", "review")
    assert verdict.error == blocking.error
    assert verdict.verdict_id != blocking.verdict_id


# ---------------------------------------------------------------- ids


def test_repeat_of_a_request_gets_the_same_id() -> None:
    first, second = (verdict_of("red", policy_of(RED)) for _ in range(2))
    assert first.verdict_id == second.verdict_id


def test_id_changes_with_policy_content_and_outcome() -> None:
    verdicts = [
        verdict_of("red", policy_of(RED)),
        verdict_of("red red", policy_of(RED)),
        verdict_of("red", policy_of(RED, GREEN)),
        verdict_of("red", policy_of(RED), request_id="another"),
        undetermined_of(policy_of(RED)),
        undetermined_of(policy_of(RED, on_error="block")),
    ]
    assert len({verdict.verdict_id for verdict in verdicts}) == len(verdicts)


# ---------------------------------------------------------------- who decided


def test_category_that_asked_for_the_decision_is_the_deciding_one() -> None:
    verdict = verdict_of("red", policy_of(GREEN, RED))
    assert (decided := deciding(verdict)) is not None
    assert decided.id == "colour.red"


def test_of_an_allowed_image_the_category_nearest_its_threshold_is_the_deciding_one() -> None:
    nearest = category("near", prompts=["red"], contrast=["blue"], review=0.2)
    far = category("far", prompts=["red"], contrast=["blue"], review=0.9)
    verdict = verdict_of("blue", policy_of(far, nearest))
    assert (verdict.decision, decided := deciding(verdict)) == ("allow", decided)
    assert decided is not None
    assert decided.id == "near"


def test_nothing_decided_where_nothing_was_scored() -> None:
    assert deciding(undetermined_of(policy_of(RED))) is None


# ---------------------------------------------------------------- messages


def test_verdict_is_published_under_its_item_with_the_trace_of_its_request() -> None:
    trace = (("traceparent", b"00-1-2-01"), ("tracestate", b"v=1"))
    context = record(headers=(("cookie", b"secret"), *trace)).trace_context
    verdict = verdict_of("red", policy_of(RED), item_id="ítem")
    message = verdict_message(verdict, "verdicts", context)
    assert (message.topic, message.key) == ("verdicts", "ítem".encode())
    assert message.headers == trace
    assert Verdict.model_validate_json(message.value or b"") == verdict


def test_dead_letter_is_the_record_as_it_came_and_why() -> None:
    headers = (("traceparent", b"00-1-2-01"), ("odd", b"\xff"))
    came = record(value=b"\xffnot json", headers=headers)
    message = dead_letter_message(came, MALFORMED, "dead", worker="w", whole=True)
    assert (message.topic, message.key, message.value) == ("dead", b"k", b"\xffnot json")
    assert message.headers[:-1] == headers
    letter = letter_of(message.headers)
    assert (letter.reason, letter.detail, letter.stage) == (
        MalformedReason.NOT_JSON,
        "the value is not JSON",
        Stage.PARSE,
    )
    assert letter.source.model_dump() == {"topic": "requests", "partition": 3, "offset": 42}
    assert letter.value_included


def test_dead_letter_without_its_value_has_its_digest_and_length() -> None:
    value = b"x" * 5000
    message = dead_letter_message(record(value=value), MALFORMED, "dead", worker="w", whole=False)
    letter = letter_of(message.headers)
    assert (message.key, message.value, letter.value_included) == (b"k", b"", False)
    assert (letter.value_sha256, letter.value_bytes) == (hashlib.sha256(value).hexdigest(), 5000)


@pytest.mark.parametrize("part", ["key", "value", "headers"])
def test_dead_letter_that_stands_in_is_small_whatever_was_large(part: str) -> None:
    large = b"x" * 1_000_000
    came = record(**{part: (("big", large),) if part == "headers" else large})
    message = dead_letter_message(came, MALFORMED, "dead", worker="w", whole=False)
    headers = sum(len(name) + len(value) for name, value in message.headers)
    assert len(message.key or b"") + len(message.value or b"") + headers < 4096


def test_dead_letter_that_was_replayed_tells_of_its_last_failure_only() -> None:
    first = dead_letter_message(record(), MALFORMED, "dead", worker="w", whole=True)
    again = record(offset=43, headers=first.headers)
    second = dead_letter_message(again, MALFORMED, "dead", worker="w", whole=True)
    assert [name for name, _ in second.headers] == [DEAD_LETTER_HEADER]
    assert letter_of(second.headers).source.offset == 43
