"""How far each partition may be committed. Pure: no I/O, no clock, no threads.

Work finishes out of order; commits never do. The watermark of a partition is the offset of its
first record that is not done, or, when all are, the one after the last record polled. Every record
below it is done, so after a crash nothing is skipped, and only what lies above is read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.types import Record, TopicPartition


@dataclass(slots=True)
class _Partition:
    """``next_offset`` follows the last record polled, ``committed`` is what the broker knows."""

    next_offset: int
    committed: int
    in_flight: OrderedDict[int, Record] = field(default_factory=OrderedDict)

    @property
    def watermark(self) -> int:
        # The offsets that were polled, not + 1: compaction and transaction markers leave gaps.
        return next(iter(self.in_flight), self.next_offset)


class Watermarks:
    """The contiguous watermark of each partition that has been polled.

    A record is known by identity, not by its offset: one that was polled before its partition was
    forgotten, and finishes afterwards, says nothing about the partition's next assignment, in
    which the same offset is polled and worked on again.
    """

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, _Partition] = {}

    def polled(self, record: Record) -> None:
        """``record`` is in flight. Records of a partition come in the order of their offsets.

        An offset that was polled before means that the position went back, and what follows it
        will be polled again: it is in flight anew.
        """
        partition = self._partitions.setdefault(
            record.topic_partition, _Partition(next_offset=record.offset, committed=record.offset)
        )
        in_flight = partition.in_flight
        while in_flight and next(reversed(in_flight)) >= record.offset:
            in_flight.popitem()
        in_flight[record.offset] = record
        partition.next_offset = record.offset + 1

    def done(self, record: Record) -> None:
        """``record`` is answered: its verdict or dead letter is acknowledged.

        Records that are not in flight (any more) are ignored.
        """
        partition = self._partitions.get(record.topic_partition)
        if partition is not None and partition.in_flight.get(record.offset) is record:
            del partition.in_flight[record.offset]

    def committable(self) -> dict[TopicPartition, int]:
        """The offset to read next, of each partition whose watermark moved since it was
        committed."""
        return {
            topic_partition: partition.watermark
            for topic_partition, partition in self._partitions.items()
            if partition.watermark != partition.committed
        }

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """The broker acknowledged these offsets."""
        for topic_partition, offset in offsets.items():
            if (partition := self._partitions.get(topic_partition)) is not None:
                partition.committed = offset

    def in_flight(self, partitions: Iterable[TopicPartition]) -> int:
        """How many records of these partitions are in flight."""
        return sum(
            len(self._partitions[topic_partition].in_flight)
            for topic_partition in partitions
            if topic_partition in self._partitions
        )

    def forget(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """These partitions are no longer ours. Returns what of them was still committable."""
        forgotten = set(partitions) & self._partitions.keys()
        last = {tp: offset for tp, offset in self.committable().items() if tp in forgotten}
        for topic_partition in forgotten:
            del self._partitions[topic_partition]
        return last
