from __future__ import annotations

import pytest

from worker.commit import Watermarks
from worker.types import Record, TopicPartition

P0 = TopicPartition("requests", 0)
P1 = TopicPartition("requests", 1)


def record(offset: int, partition: TopicPartition = P0) -> Record:
    return Record(partition.topic, partition.partition, offset, key=None, value=b"")


@pytest.fixture
def watermarks() -> Watermarks:
    return Watermarks()


def polled(watermarks: Watermarks, *offsets: int, partition: TopicPartition = P0) -> list[Record]:
    records = [record(offset, partition) for offset in offsets]
    for each in records:
        watermarks.polled(each)
    return records


def test_nothing_is_committable_before_anything_is_done(watermarks: Watermarks) -> None:
    polled(watermarks, 5, 6)
    assert watermarks.committable() == {}


def test_the_offset_after_the_last_one_is_committable_when_all_are_done(
    watermarks: Watermarks,
) -> None:
    for each in polled(watermarks, 5, 6, 7):
        watermarks.done(each)
    assert watermarks.committable() == {P0: 8}


def test_a_record_that_is_not_done_holds_back_all_after_it(watermarks: Watermarks) -> None:
    first, second, third = polled(watermarks, 5, 6, 7)
    watermarks.done(third)
    assert watermarks.committable() == {}
    watermarks.done(first)
    assert watermarks.committable() == {P0: 6}
    watermarks.done(second)
    assert watermarks.committable() == {P0: 8}


def test_the_watermark_follows_polled_offsets_over_a_gap(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 90)
    watermarks.done(first)
    assert watermarks.committable() == {P0: 90}


def test_partitions_do_not_hold_each_other_back(watermarks: Watermarks) -> None:
    polled(watermarks, 1)
    (other,) = polled(watermarks, 1, partition=P1)
    watermarks.done(other)
    assert watermarks.committable() == {P1: 2}


def test_what_was_committed_is_not_committable_again(watermarks: Watermarks) -> None:
    first, second = polled(watermarks, 5, 6)
    watermarks.done(first)
    watermarks.committed(watermarks.committable())
    assert watermarks.committable() == {}
    watermarks.done(second)
    assert watermarks.committable() == {P0: 7}


def test_what_finished_while_a_commit_was_under_way_is_committable_after_it(
    watermarks: Watermarks,
) -> None:
    first, second = polled(watermarks, 5, 6)
    watermarks.done(first)
    under_way = watermarks.committable()
    watermarks.done(second)
    watermarks.committed(under_way)
    assert watermarks.committable() == {P0: 7}


def test_a_record_done_twice_counts_once(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 6)
    watermarks.done(first)
    watermarks.done(first)
    assert watermarks.committable() == {P0: 6}


def test_a_record_of_an_earlier_assignment_does_not_count_for_the_next(
    watermarks: Watermarks,
) -> None:
    (before,) = polled(watermarks, 5)
    watermarks.forget([P0])
    (after,) = polled(watermarks, 5)
    watermarks.done(before)
    assert watermarks.committable() == {}
    watermarks.done(after)
    assert watermarks.committable() == {P0: 6}


def test_forgetting_gives_back_what_was_still_committable(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 6)
    (other,) = polled(watermarks, 5, partition=P1)
    watermarks.done(first)
    watermarks.done(other)
    assert watermarks.forget([P0]) == {P0: 6}
    assert watermarks.committable() == {P1: 6}


def test_a_forgotten_partition_is_not_committable(watermarks: Watermarks) -> None:
    (first,) = polled(watermarks, 5)
    watermarks.done(first)
    watermarks.forget([P0])
    watermarks.committed({P0: 6})
    assert watermarks.committable() == {}


def test_forgetting_an_unknown_partition_changes_nothing(watermarks: Watermarks) -> None:
    assert watermarks.forget([P1]) == {}


def test_a_position_that_goes_back_keeps_what_lies_before_it_in_flight(
    watermarks: Watermarks,
) -> None:
    first, second, third = polled(watermarks, 5, 6, 7)
    (again,) = polled(watermarks, 6)
    for each in (second, third, again):
        watermarks.done(each)
    assert watermarks.committable() == {}
    watermarks.done(first)
    assert watermarks.committable() == {P0: 7}


def test_a_log_that_starts_over_is_committed_from_its_new_start(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 500, 501)
    watermarks.done(first)
    watermarks.committed(watermarks.committable())
    (restarted,) = polled(watermarks, 0)
    watermarks.done(restarted)
    assert watermarks.committable() == {P0: 1}


def test_in_flight_counts_the_records_of_the_named_partitions(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 6)
    polled(watermarks, 5, partition=P1)
    assert watermarks.in_flight([P0, P1]) == 3
    watermarks.done(first)
    assert watermarks.in_flight([P0]) == 1
    assert watermarks.in_flight([TopicPartition("other", 0)]) == 0
