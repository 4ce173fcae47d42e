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


def test_watermark_is_at_the_first_record_before_anything_is_done(watermarks: Watermarks) -> None:
    polled(watermarks, 5, 6)
    assert watermarks.watermark(P0) == 5


def test_watermark_is_after_the_last_one_when_all_are_done(watermarks: Watermarks) -> None:
    for each in polled(watermarks, 5, 6, 7):
        watermarks.done(each)
    assert watermarks.watermark(P0) == 8
    assert watermarks.idle(P0)


def test_a_record_that_is_not_done_holds_back_all_after_it(watermarks: Watermarks) -> None:
    first, second, third = polled(watermarks, 5, 6, 7)
    watermarks.done(third)
    assert watermarks.watermark(P0) == 5
    watermarks.done(first)
    assert watermarks.watermark(P0) == 6
    watermarks.done(second)
    assert watermarks.watermark(P0) == 8


def test_the_watermark_follows_polled_offsets_over_a_gap(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 90)
    watermarks.done(first)
    assert watermarks.watermark(P0) == 90
    assert watermarks.last_polled(P0) == 90


def test_partitions_do_not_hold_each_other_back(watermarks: Watermarks) -> None:
    polled(watermarks, 1)
    (other,) = polled(watermarks, 1, partition=P1)
    watermarks.done(other)
    assert (watermarks.watermark(P0), watermarks.watermark(P1)) == (1, 2)


def test_a_record_done_twice_counts_once(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 5, 6)
    watermarks.done(first)
    watermarks.done(first)
    assert watermarks.watermark(P0) == 6


def test_a_record_of_an_earlier_assignment_does_not_count_for_the_next(
    watermarks: Watermarks,
) -> None:
    (before,) = polled(watermarks, 5)
    watermarks.forget([P0])
    (after,) = polled(watermarks, 5)
    assert not watermarks.holds(before)
    watermarks.done(before)
    assert watermarks.watermark(P0) == 5
    watermarks.done(after)
    assert watermarks.watermark(P0) == 6


def test_a_forgotten_partition_is_not_known(watermarks: Watermarks) -> None:
    (first,) = polled(watermarks, 5)
    polled(watermarks, 5, partition=P1)
    watermarks.forget([P0, TopicPartition("never polled", 0)])
    watermarks.done(first)
    assert watermarks.partitions() == [P1]


def test_a_position_that_goes_back_keeps_what_lies_before_it_in_flight(
    watermarks: Watermarks,
) -> None:
    first, second, third = polled(watermarks, 5, 6, 7)
    (again,) = polled(watermarks, 6)
    for each in (second, third, again):
        watermarks.done(each)
    assert watermarks.watermark(P0) == 5
    watermarks.done(first)
    assert watermarks.watermark(P0) == 7


def test_a_log_that_starts_over_is_followed_from_its_new_start(watermarks: Watermarks) -> None:
    first, _ = polled(watermarks, 500, 501)
    watermarks.done(first)
    (restarted,) = polled(watermarks, 0)
    watermarks.done(restarted)
    assert watermarks.watermark(P0) == 1
