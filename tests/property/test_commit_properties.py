"""The ledger against a plain model, under any interleaving of polls, work, answers, commits that
take their time, rebalances and deaths."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.commit import Watermarks
from worker.ledger import Ledger
from worker.poison import Note, Standing
from worker.types import OffsetAndMetadata, Record, TopicPartition

PARTITIONS = [TopicPartition("requests", number) for number in range(2)]
MAX_DEATHS = 2
GAPS = st.integers(min_value=0, max_value=5)
some_partition = st.sampled_from(PARTITIONS)


@dataclass
class Process:
    """What dies with it."""

    ledger: Ledger = field(default_factory=lambda: Ledger(max_deaths=MAX_DEATHS))
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    in_flight: list[Record] = field(default_factory=list)
    begun: list[Record] = field(default_factory=list)
    alone: Record | None = None
    committing: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)


class Interleavings(RuleBasedStateMachine):
    """One process at a time. What outlives it is the broker: the log of each partition, and what
    is committed. The model also remembers which offsets were answered, how often a process died
    with an offset in work, and which were to be tried alone."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[TopicPartition, list[int]] = {each: [] for each in PARTITIONS}
        self.broker: dict[TopicPartition, OffsetAndMetadata] = {}
        self.answered: set[tuple[TopicPartition, int]] = set()
        self.deaths: dict[tuple[TopicPartition, int], int] = {}
        self.named: set[tuple[TopicPartition, int]] = set()
        self.process = Process()
        self._start()

    def _start(self) -> None:
        self.process = Process()
        for partition in PARTITIONS:
            self._position(partition)

    def _position(self, partition: TopicPartition) -> None:
        committed = self.broker.get(partition)
        self.process.positions[partition] = committed.offset if committed else 0

    @rule(partition=some_partition, gaps=st.lists(GAPS, min_size=1, max_size=5))
    def publish(self, partition: TopicPartition, gaps: list[int]) -> None:
        for gap in gaps:
            end = self.logs[partition][-1] + 1 if self.logs[partition] else 0
            self.logs[partition].append(end + gap)

    @rule(partition=some_partition, room=st.integers(1, 4))
    def poll(self, partition: TopicPartition, room: int) -> None:
        position = self.process.positions[partition]
        for offset in [o for o in self.logs[partition] if o >= position][:room]:
            record = Record(*partition, offset, key=None, value=None)
            self.process.ledger.polled(record)
            self.process.in_flight.append(record)
            self.process.positions[partition] = offset + 1

    @rule()
    def learn_what_was_committed(self) -> None:
        unopened = self.process.ledger.unopened()
        self.process.ledger.opened({each: self.broker.get(each) for each in unopened})

    @precondition(lambda self: not self.process.committing)
    @rule(data=st.data(), partition=some_partition)
    def get_to_work(self, partition: TopicPartition, data: st.DataObject) -> None:
        """All that leads to work at once: by chance alone it would be rare."""
        if not self.process.in_flight:
            self.publish(partition, [0])
            self.poll(partition, 2)
        self.learn_what_was_committed()
        for _ in range(2):  # a suspect asks for a commit first
            self.start_a_commit()
            self.commit_is_acknowledged()
            if self.process.in_flight and not self.process.alone:
                self.begin(data)

    @precondition(lambda self: self.process.in_flight and not self.process.alone)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.process.in_flight))
        standing = self.process.ledger.standing(record)
        if standing is Standing.SUSPECT:
            if not self.process.begun:
                self.process.ledger.try_alone(record, trying=True)
                self.named.add((record.topic_partition, record.offset))
                if self.process.ledger.tried_alone(record):
                    self.process.alone = record
                    self._begin(record)
        elif standing is Standing.FREE:
            self._begin(record)
        elif standing is Standing.POISON:
            assert (record.topic_partition, record.offset) in self.named
            self._begin(record)

    def _begin(self, record: Record) -> None:
        self.process.in_flight.remove(record)
        self.process.begun.append(record)

    @precondition(lambda self: self.process.begun)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.process.begun))
        if record is self.process.alone:
            self.process.ledger.try_alone(record, trying=False)
            if self.process.ledger.tried_alone(record):
                return  # until a commit no longer names it
            self.process.alone = None
        self.process.begun.remove(record)
        self.answered.add((record.topic_partition, record.offset))
        self.process.ledger.done(record)

    @precondition(lambda self: not self.process.committing)
    @rule()
    def start_a_commit(self) -> None:
        self.process.committing = self.process.ledger.committable()

    @rule()
    def commit_is_acknowledged(self) -> None:
        self.broker.update(self.process.committing)
        self.process.ledger.committed(self.process.committing)
        self.process.committing = {}

    @rule()
    def commit_arrives_and_its_process_dies(self) -> None:
        self.broker.update(self.process.committing)
        self.die()

    @rule()
    def die(self) -> None:
        for record in self.process.begun:
            key = record.topic_partition, record.offset
            self.deaths[key] = self.deaths.get(key, 0) + 1
        self._start()

    @precondition(lambda self: not self.process.committing)
    @rule(partition=some_partition)
    def give_up_in_good_order(self, partition: TopicPartition) -> None:
        self.broker.update(self.process.ledger.closing([partition]))
        self._let_go(partition)

    @precondition(lambda self: not self.process.committing)
    @rule(partition=some_partition)
    def lose(self, partition: TopicPartition) -> None:
        self._let_go(partition)

    def _let_go(self, partition: TopicPartition) -> None:
        process = self.process
        process.ledger.forget([partition])
        process.in_flight = [r for r in process.in_flight if r.topic_partition != partition]
        process.begun = [r for r in process.begun if r.topic_partition != partition]
        if process.alone and process.alone.topic_partition == partition:
            process.alone = None
        self._position(partition)

    @invariant()
    def nothing_is_committed_past_an_offset_that_was_not_answered(self) -> None:
        for partition, (watermark, _) in self.broker.items():
            below = {(partition, offset) for offset in self.logs[partition] if offset < watermark}
            assert below <= self.answered

    @invariant()
    def what_is_in_work_is_reserved_at_the_broker(self) -> None:
        for record in self.process.begun:
            committed = self.broker[record.topic_partition]
            note = Note.parse(committed.metadata)
            assert note.reserved >= record.offset or record.offset in note.poison

    @invariant()
    def what_was_in_work_in_enough_deaths_is_not_free(self) -> None:
        for record in self.process.in_flight:
            key = record.topic_partition, record.offset
            if self.deaths.get(key, 0) >= MAX_DEATHS and key not in self.answered:
                assert self.process.ledger.standing(record) is not Standing.FREE


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    offsets=st.lists(st.integers(0, 10_000), min_size=1, max_size=50, unique=True).map(sorted),
    data=st.data(),
)
def test_when_all_are_done_in_any_order_the_watermark_is_after_the_last(
    offsets: list[int], data: st.DataObject
) -> None:
    watermarks = Watermarks()
    polled = [Record("requests", 0, offset, key=None, value=None) for offset in offsets]
    for record in polled:
        watermarks.polled(record)
    for record in data.draw(st.permutations(polled)):
        watermarks.done(record)
    assert watermarks.watermark(TopicPartition("requests", 0)) == offsets[-1] + 1


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
    assert watermarks.watermark(TopicPartition("requests", 0)) == min(missing)
