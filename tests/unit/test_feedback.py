"""Feedback: what is taken for it, and which verdict it answers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import Malformed, MalformedReason
from worker.feedback import Feedback, parse_feedback
from worker.past.feedback import FeedbackJoin, Judged
from worker.schema import Action, CategoryVerdict, ImageRef, ModelRef, PolicyRef, Verdict

NOON = datetime(2031, 1, 31, 12, tzinfo=UTC)
LONG_AGO = NOON - timedelta(days=3650)
DIGEST = "sha256:" + "0" * 64
IMAGE = ImageRef(
    sha256="0" * 64,
    perceptual_hash=None,
    type="image/jpeg",
    width=16,
    height=16,
    bytes=700,
    frames=1,
    frames_scored=1,
    worst_frame=0,
)


def feedback(
    item: str = "item", category: str = "cat", shows: bool = True, **keys: Any
) -> Feedback:
    return Feedback(schema_version=1, item_id=item, category=category, shows=shows, **keys)


def said(category: str, action: Action) -> CategoryVerdict:
    return CategoryVerdict(
        id=category,
        parent=None,
        probability=0.5,
        margin=0.0,
        threshold=0.5,
        action=action,
        loudest_for=None,
        loudest_against=None,
        calibrated=True,
    )


def verdict(
    item: str = "item",
    *,
    minutes: float = -1,
    request: str = "request",
    policy: str = "policy",
    shadow: tuple[CategoryVerdict, ...] = (),
    **actions: Action,
) -> Verdict:
    """Made so many minutes after noon. Without ``actions`` nothing was examined."""
    decision = max(actions.values(), default="undetermined")
    return Verdict(
        verdict_id=uuid5(UUID(int=0), f"{request} {policy} {minutes}"),
        request_id=request,
        item_id=item,
        tenant=None,
        status="ok" if actions else "error",
        decision=decision,
        action="allow",
        categories=tuple(said(category, action) for category, action in actions.items()),
        shadow=shadow,
        policy=PolicyRef(id=policy, version=1, digest=DIGEST),
        model=ModelRef(
            name="fake", weights_digest=DIGEST, preprocess_digest=DIGEST, precision="fp32"
        ),
        image=IMAGE if actions else None,
        timings_ms={},
        metadata={},
        worker="worker",
        produced_at=NOON + timedelta(minutes=minutes),
    )


def judged(join: FeedbackJoin, since: datetime = LONG_AGO) -> list[Judged]:
    found, _ = join.judged(since)
    return found


def unmatched(join: FeedbackJoin) -> int:
    return join.judged(LONG_AGO)[1]


# ---------------------------------------------------------------- the message


def test_feedback_needs_an_item_a_category_and_what_was_seen() -> None:
    given = b'{"schema_version": 1, "item_id": "7", "category": "cat", "shows": false}'
    read = parse_feedback(given)
    assert (read.item_id, read.category, read.shows, read.sampled) == ("7", "cat", False, 1.0)


def test_feedback_may_name_the_verdict_and_when_and_how_it_came_to_be_looked_at() -> None:
    given = {
        "schema_version": 1,
        "item_id": "listing-4711",
        "category": "weapons.firearm",
        "shows": True,
        "decision": "block",
        "reviewer": "r-17",
        "decided_at": "2031-01-31T12:00:00Z",
        "verdict_id": "f3a4c45c-02cd-5cd5-a0c1-e54870582f12",
        "request_id": "request",
        "policy": "default",
        "sampled": 0.01,
    }
    read = parse_feedback(json.dumps(given).encode())
    assert read.decided_at == NOON
    assert read.sampled == 0.01


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shows": "yes"}, "shows"),
        ({"shows": 1}, "shows"),
        ({"category": ""}, "category"),
        ({"item_id": None}, "item_id"),
        ({"sampled": 0}, "sampled"),
        ({"sampled": 1e-300}, "sampled"),
        ({"sampled": 1.5}, "sampled"),
        ({"decided_at": "2031-01-31T12:00:00"}, "decided_at"),
        ({"decision": "ban"}, "decision"),
        ({"verdict": "x"}, "verdict"),
        ({"schema_version": 2}, "schema_version must be 1"),
    ],
)
def test_what_is_no_feedback_is_told_by_its_field_and_not_by_its_value(
    change: dict[str, Any], told: str
) -> None:
    whole = {"schema_version": 1, "item_id": "SECRET", "category": "cat", "shows": True}
    with pytest.raises(Malformed, match=told) as refused:
        parse_feedback(json.dumps(whole | change).encode())
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, MalformedReason.EMPTY),
        (b"", MalformedReason.EMPTY),
        (b"{", MalformedReason.NOT_JSON),
        (b"\xff", MalformedReason.NOT_JSON),
        (b" " * 70_000, MalformedReason.TOO_LARGE),
        (b"[]", MalformedReason.INVALID),
    ],
)
def test_what_is_no_message_at_all_has_its_reason(
    value: bytes | None, reason: MalformedReason
) -> None:
    with pytest.raises(Malformed) as refused:
        parse_feedback(value)
    assert refused.value.reason is reason


def test_a_number_that_is_none_is_refused() -> None:
    given = b'{"schema_version": 1, "item_id": "7", "category": "c", "shows": true, "sampled": NaN}'
    with pytest.raises(Malformed):
        parse_feedback(given)


@given(
    value=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)
    ).map(lambda inner: json.dumps(inner).encode())
    | st.fixed_dictionaries(
        {"schema_version": st.just(1), "item_id": st.text(), "category": st.text()},
        optional={
            "shows": st.booleans() | st.text(),
            "sampled": st.floats(),
            "decided_at": st.datetimes().map(str) | st.floats(),
            "verdict_id": st.uuids().map(str) | st.text(),
        },
    ).map(lambda fields: json.dumps(fields).encode())
)
def test_whatever_is_published_is_feedback_or_malformed(value: bytes) -> None:
    try:
        read = parse_feedback(value)
    except Malformed:
        return
    assert parse_feedback(read.model_dump_json().encode()) == read
    assert 0 < read.sampled <= 1


# ---------------------------------------------------------------- which verdict it answers


def test_feedback_is_counted_with_what_the_verdict_had_said() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(cat="block", dog="allow"))
    join.add_feedback(feedback(shows=False), NOON)
    join.add_feedback(feedback(category="dog", sampled=0.25), NOON)
    assert judged(join) == [
        Judged("policy", "cat", "block", False, 1.0, "item", IMAGE.sha256),
        Judged("policy", "dog", "allow", True, 4.0, "item", IMAGE.sha256),
    ]


def test_feedback_may_come_before_its_verdict() -> None:
    join = FeedbackJoin(items=10)
    join.add_feedback(feedback(), NOON)
    assert (judged(join), unmatched(join)) == ([], 1)
    join.add_verdict(verdict(cat="review"))
    assert (len(judged(join)), unmatched(join)) == (1, 0)


def test_a_category_on_trial_is_measured_too() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(dog="allow", shadow=(said("cat", "block"),)))
    join.add_feedback(feedback(), NOON)
    assert [one.action for one in judged(join)] == ["block"]


def test_feedback_answers_the_last_verdict_before_the_person_decided() -> None:
    join = FeedbackJoin(items=10)
    for minutes, action in ((-20, "allow"), (-10, "review"), (10, "block")):
        join.add_verdict(verdict(minutes=minutes, cat=action))
    join.add_feedback(feedback(), NOON)
    assert [one.action for one in judged(join)] == ["review"]


def test_feedback_that_names_its_verdict_answers_that_one() -> None:
    join = FeedbackJoin(items=10)
    first = verdict(minutes=-20, cat="allow")
    join.add_verdict(first)
    join.add_verdict(verdict(minutes=-10, cat="review"))
    join.add_feedback(feedback(verdict_id=first.verdict_id), NOON)
    assert [one.action for one in judged(join)] == ["allow"]


def test_feedback_that_names_a_request_or_a_policy_answers_its_last_verdict() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(minutes=-30, request="front", policy="strict", cat="block"))
    join.add_verdict(verdict(minutes=-20, request="front", policy="lax", cat="review"))
    join.add_verdict(verdict(minutes=-10, request="back", policy="lax", cat="allow"))
    join.add_feedback(feedback(request_id="front"), NOON)
    assert [one.action for one in judged(join)] == ["review"]
    join.add_feedback(feedback(policy="strict"), NOON)
    assert [one.action for one in judged(join)] == ["block"]


@pytest.mark.parametrize(
    "answer",
    [
        feedback(category="bird"),
        feedback(item="another"),
        feedback(policy="another"),
        feedback(verdict_id=UUID(int=1)),
    ],
)
def test_feedback_that_answers_no_verdict_is_unmatched(answer: Feedback) -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(cat="allow"))
    join.add_feedback(answer, NOON)
    assert (judged(join), unmatched(join)) == ([], 1)


def test_a_verdict_on_no_image_is_not_answered() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(minutes=-2, cat="review"))
    join.add_verdict(verdict(minutes=-1))
    join.add_feedback(feedback(), NOON)
    assert [one.action for one in judged(join)] == ["review"]


def test_of_one_item_and_category_the_latest_feedback_counts() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(cat="block"))
    join.add_feedback(feedback(shows=True), NOON)
    join.add_feedback(feedback(shows=False), NOON)
    join.add_feedback(feedback(shows=True), NOON - timedelta(seconds=30))
    assert [one.shows for one in judged(join)] == [False]


def test_feedback_from_before_the_window_counts_no_more() -> None:
    join = FeedbackJoin(items=10)
    join.add_verdict(verdict(cat="block"))
    join.add_feedback(feedback(), NOON)
    assert judged(join, since=NOON) != []
    assert join.judged(since=NOON + timedelta(seconds=1)) == ([], 0)


# ---------------------------------------------------------------- what is remembered


def test_verdicts_that_people_said_something_of_outlive_others() -> None:
    join = FeedbackJoin(items=3)
    join.add_feedback(feedback(), NOON)
    join.add_verdict(verdict(cat="block"))
    for number in range(100):
        join.add_verdict(verdict(item=str(number), cat="allow"))
    assert len(judged(join)) == 1
    join.add_feedback(feedback(item="0"), NOON)
    join.add_feedback(feedback(item="99"), NOON)
    assert (len(judged(join)), unmatched(join)) == (2, 1)


@given(
    told=st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 5)), max_size=200),
    items=st.integers(1, 8),
)
def test_no_more_is_remembered_than_was_allowed(
    told: list[tuple[bool, int, int]], items: int
) -> None:
    join = FeedbackJoin(items=items)
    for is_verdict, item, minutes in told:
        if is_verdict:
            join.add_verdict(verdict(item=str(item), minutes=-minutes, cat="allow"))
        else:
            join.add_feedback(feedback(item=str(item)), NOON)
    found, lost = join.judged(LONG_AGO)
    assert len(found) + lost <= items
    assert len({told[1] for told in told if not told[0]}) >= len(found) + lost
