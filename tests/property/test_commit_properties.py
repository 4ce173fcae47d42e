"""The watermark against a plain model, under any interleaving of polls, answers and rebalances."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from worker.commit import Watermarks
from worker.types import Record, TopicPartition

PARTITIONS = [TopicPartition("requests", number) for number in range(3)]
GAPS = st.integers(min_value=0, max_value=5)
some_partition = st.sampled_from(PARTITIONS)


class Interleavings(RuleBasedStateMachine):
    """One process that polls, answers out of order, commits, and loses and gains partitions.

    The model is the broker's: where the log of each partition ends, what is committed, and, of
    every offset ever polled, whether some record of it was answered.
    """

    records = Bundle("records")

    def __init__(self) -> None:
        super().__init__()
        self.watermarks = Watermarks()
        self.ends = dict.fromkeys(PARTITIONS, 0)
        self.positions = dict.fromkeys(PARTITIONS, 0)
        self.broker = dict.fromkeys(PARTITIONS, 0)
        self.logs: dict[TopicPartition, list[int]] = {each: [] for each in PARTITIONS}
        self.answered: set[tuple[TopicPartition, int]] = set()

    @rule(partition=some_partition, gaps=st.lists(GAPS, min_size=1, max_size=5))
    def publish(self, partition: TopicPartition, gaps: list[int]) -> None:
        for gap in gaps:
            offset = self.ends[partition] + gap
            self.logs[partition].append(offset)
            self.ends[partition] = offset + 1

    @rule(target=records, partition=some_partition, room=st.integers(0, 4))
    def poll(self, partition: TopicPartition, room: int) -> object:
        ahead = [o for o in self.logs[partition] if o >= self.positions[partition]][:room]
        polled = [Record(*partition, offset, key=None, value=None) for offset in ahead]
        for record in polled:
            self.watermarks.polled(record)
            self.positions[partition] = record.offset + 1
        return multiple(*polled)

    @rule(record=consumes(records))
    def answer(self, record: Record) -> None:
        self.answered.add((record.topic_partition, record.offset))
        self.watermarks.done(record)

    @rule()
    def commit(self) -> None:
        offsets = self.watermarks.committable()
        self.broker.update(offsets)
        self.watermarks.committed(offsets)

    @rule(partition=some_partition)
    def revoke_and_assign_again(self, partition: TopicPartition) -> None:
        self.broker.update(self.watermarks.forget([partition]))
        self.positions[partition] = self.broker[partition]

    @rule(partition=some_partition)
    def lose_and_assign_again(self, partition: TopicPartition) -> None:
        self.watermarks.forget([partition])
        self.positions[partition] = self.broker[partition]

    @invariant()
    def nothing_is_committable_past_an_offset_that_was_not_answered(self) -> None:
        for partition, watermark in (self.broker | self.watermarks.committable()).items():
            below = {offset for offset in self.logs[partition] if offset < watermark}
            assert {(partition, offset) for offset in below} <= self.answered

    @invariant()
    def no_commit_goes_back(self) -> None:
        for partition, watermark in self.watermarks.committable().items():
            assert watermark > self.broker[partition]


TestInterleavings = Interleavings.TestCase


@given(
    offsets=st.lists(st.integers(0, 10_000), min_size=1, max_size=50, unique=True).map(sorted),
    data=st.data(),
)
def test_when_all_are_done_in_any_order_the_offset_after_the_last_is_committable(
    offsets: list[int], data: st.DataObject
) -> None:
    watermarks = Watermarks()
    polled = [Record("requests", 0, offset, key=None, value=None) for offset in offsets]
    for record in polled:
        watermarks.polled(record)
    for record in data.draw(st.permutations(polled)):
        watermarks.done(record)
    assert watermarks.committable() == {TopicPartition("requests", 0): offsets[-1] + 1}
    assert watermarks.in_flight([TopicPartition("requests", 0)]) == 0


@given(
    offsets=st.lists(st.integers(0, 10_000), min_size=2, max_size=50, unique=True).map(sorted),
    data=st.data(),
)
def test_the_watermark_is_the_first_offset_that_is_not_done(
    offsets: list[int], data: st.DataObject
) -> None:
    watermarks = Watermarks()
    polled = [Record("requests", 0, offset, key=None, value=None) for offset in offsets]
    for record in polled:
        watermarks.polled(record)
    missing = data.draw(st.sets(st.sampled_from(offsets[1:]), min_size=1))
    for record in polled:
        if record.offset not in missing:
            watermarks.done(record)
    assert watermarks.committable() == {TopicPartition("requests", 0): min(missing)}
