"""Which of several verdicts on one request counts."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.past_records import NOON, compiled, embedding, records, verdict
from worker.errors import ErrorCode
from worker.past.verdict_table import InForce, VerdictTable, in_force
from worker.schema import Verdict
from worker.types import Record

POLICY = compiled()
RED, GREEN, BLUE = (embedding(colour, colour) for colour in ("red", "green", "blue"))
AWAY = ErrorCode.HOST_UNAVAILABLE


def standing(of: list[Record]) -> InForce:
    table = VerdictTable()
    assert all(table.add(record) for record in of)
    return in_force(table.table())


def ids(found: InForce) -> list[str]:
    names: list[str] = found.verdicts["verdict_id"].to_pylist()
    return names


def test_a_request_with_one_verdict_has_it_in_force() -> None:
    said = [verdict(name, RED, POLICY) for name in ("a", "b")]
    found = standing(records(*said))
    assert ids(found) == [str(one.verdict_id) for one in said]
    assert (found.repeats, found.overruled) == (0, 0)


def test_a_repeat_counts_once() -> None:
    said = verdict("a", RED, POLICY)
    found = standing(records(said, said, said))
    assert (len(found.verdicts), found.repeats, found.overruled) == (1, 2, 0)


def test_ok_beats_error_whatever_the_order() -> None:
    ok, error = verdict("a", RED, POLICY), verdict("a", AWAY, POLICY)
    for order in ((ok, error), (error, ok)):
        assert ids(standing(records(*order))) == [str(ok.verdict_id)]


def test_the_one_that_supersedes_beats_a_higher_offset() -> None:
    first = verdict("a", RED, POLICY)
    second = verdict("a", GREEN, POLICY, supersedes=first.verdict_id)
    assert ids(standing(records(second, first))) == [str(second.verdict_id)]


def test_a_repeat_of_what_was_superseded_long_ago_changes_nothing() -> None:
    first = verdict("a", RED, POLICY)
    second = verdict("a", GREEN, POLICY, supersedes=first.verdict_id)
    third = verdict("a", BLUE, POLICY, supersedes=second.verdict_id)
    assert ids(standing(records(first, second, third, first))) == [str(third.verdict_id)]


def test_among_equals_the_highest_offset_counts_though_its_clock_was_behind() -> None:
    first = verdict("a", RED, POLICY)
    second = verdict("a", GREEN, POLICY, at=NOON - timedelta(hours=1))
    assert ids(standing(records(first, second))) == [str(second.verdict_id)]


def test_across_partitions_the_later_one_counts() -> None:
    later = verdict("a", RED, POLICY, at=NOON + timedelta(hours=1))
    earlier = verdict("a", GREEN, POLICY)
    found = standing([*records(later), *records(earlier, earlier, partition=1)])
    assert ids(found) == [str(later.verdict_id)]


def test_it_knows_when_the_request_was_first_judged() -> None:
    error = verdict("a", AWAY, POLICY, at=NOON - timedelta(hours=1))
    found = standing(records(error, verdict("a", RED, POLICY)))
    assert found.verdicts["first_at"].to_pylist() == [NOON - timedelta(hours=1)]
    assert found.verdicts["produced_at"].to_pylist() == [NOON]


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 2, "verdict_id": "x"}'],
)
def test_what_is_no_verdict_is_not_taken(value: bytes) -> None:
    table = VerdictTable()
    assert not table.add(records(value)[0])
    assert len(table.table()) == 0


def test_the_category_that_asked_is_the_severest_then_the_likeliest() -> None:
    table = VerdictTable()
    for name, image in (("r", RED), ("g", GREEN), ("b", BLUE)):
        table.add(records(verdict(name, image, POLICY))[0])
    assert table.table()["decided_by"].to_pylist() == ["red", "green", None]


def test_metadata_is_kept_only_when_it_is_asked_for() -> None:
    record = records(verdict("a", RED, POLICY))[0]
    kept, left = VerdictTable(metadata=True), VerdictTable()
    kept.add(record), left.add(record)
    assert kept.table()["metadata"].to_pylist() == ['{"of": "a"}']
    assert left.table()["metadata"].to_pylist() == [None]


_CLAIMS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["red", "green", "blue", "away"]),
              st.integers(0, 3)),
    max_size=12,
)  # fmt: skip


@given(_CLAIMS)
def test_every_request_has_one_verdict_in_force_and_every_other_is_accounted_for(
    claims: list[tuple[str, str, int]],
) -> None:
    images = {"red": RED, "green": GREEN, "blue": BLUE, "away": AWAY}
    said: list[Verdict] = []
    for name, seen, supersedes in claims:
        before: UUID | None = said[supersedes].verdict_id if supersedes < len(said) else None
        said.append(verdict(name, images[seen], POLICY, supersedes=before))
    found = standing(records(*said))
    names = found.verdicts["request_id"].to_pylist()
    assert sorted(names) == sorted({name for name, _, _ in claims})
    assert len(names) + found.repeats + found.overruled == len(claims)
