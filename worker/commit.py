"""How far each partition may be committed. Pure: no I/O, no clock, no threads.

Work finishes out of order; commits never do. The watermark of a partition is the offset of its
first record that is not done, or, when all are, the one after the last record polled. Every record
below it is done, so after a crash nothing is skipped, and only what lies above is read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from worker.types import Record, TopicPartition


@dataclass(slots=True)
class _Partition:
    """``next_offset`` follows the last record polled."""

    next_offset: int
    in_flight: OrderedDict[int, Record] = field(default_factory=OrderedDict)


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
        partition = self._partitions.setdefault(record.topic_partition, _Partition(record.offset))
        in_flight = partition.in_flight
        while in_flight and next(reversed(in_flight)) >= record.offset:
            in_flight.popitem()
        in_flight[record.offset] = record
        partition.next_offset = record.offset + 1

    def done(self, record: Record) -> None:
        """``record`` is answered. Records that are not in flight (any more) are ignored."""
        if self.holds(record):
            del self._partitions[record.topic_partition].in_flight[record.offset]

    def holds(self, record: Record) -> bool:
        """Whether ``record`` is in flight."""
        partition = self._partitions.get(record.topic_partition)
        return partition is not None and partition.in_flight.get(record.offset) is record

    def partitions(self) -> list[TopicPartition]:
        """Those that were polled and not forgotten."""
        return list(self._partitions)

    def watermark(self, partition: TopicPartition) -> int:
        """The offset to read next, if the process ended now."""
        polled = self._partitions[partition]
        # The offsets that were polled, not + 1: compaction and transaction markers leave gaps.
        return next(iter(polled.in_flight), polled.next_offset)

    def last_polled(self, partition: TopicPartition) -> int:
        """The offset of the last record polled."""
        return self._partitions[partition].next_offset - 1

    def idle(self, partition: TopicPartition) -> bool:
        """Whether nothing of it is in flight."""
        return not self._partitions[partition].in_flight

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """These partitions are no longer ours."""
        for partition in partitions:
            self._partitions.pop(partition, None)
