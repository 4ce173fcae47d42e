"""What of each partition is polled, in work, done, and known to the broker. Pure: no I/O.

The watermarks say how far a partition may be committed, the journals what the commit tells of the
work in flight; a commit carries both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from worker.commit import Watermarks
from worker.poison import Journal, Note, Standing
from worker.types import OffsetAndMetadata, Record, TopicPartition


class Ledger:
    """``max_deaths`` is how many processes may die with a record in flight before it is tried
    alone."""

    def __init__(self, *, max_deaths: int) -> None:
        self._max_deaths = max_deaths
        self._watermarks = Watermarks()
        self._journals: dict[TopicPartition, Journal] = {}
        self._committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self._deadly: set[TopicPartition] = set()

    def polled(self, record: Record) -> None:
        """``record`` is in flight."""
        self._watermarks.polled(record)

    def done(self, record: Record) -> None:
        """``record`` is answered."""
        self._watermarks.done(record)

    def holds(self, record: Record) -> bool:
        """Whether it is in flight, in an assignment that still is ours."""
        return self._watermarks.holds(record)

    def partitions(self) -> list[TopicPartition]:
        """Those that were polled and not forgotten."""
        return self._watermarks.partitions()

    def unopened(self) -> list[TopicPartition]:
        """Partitions with records in flight, of which is not known yet what was committed."""
        return [each for each in self._watermarks.partitions() if each not in self._journals]

    def opened(self, committed: Mapping[TopicPartition, OffsetAndMetadata | None]) -> None:
        """What the group had committed of partitions when they were assigned to us."""
        for partition in self._watermarks.partitions():
            if partition in committed and partition not in self._journals:
                last = committed[partition]
                found = last or OffsetAndMetadata(self._watermarks.watermark(partition))
                self._journals[partition] = Journal(found, max_deaths=self._max_deaths)
                if last:
                    self._committed[partition] = last

    def standing(self, record: Record) -> Standing:
        """What may be done with a record in flight now."""
        journal = self._journals.get(record.topic_partition)
        return journal.standing(record.offset) if journal else Standing.UNMARKED

    def try_alone(self, record: Record, *, trying: bool) -> None:
        """The next commits name ``record`` as the one that is tried alone, or name it no more."""
        if (journal := self._journals.get(record.topic_partition)) is not None:
            journal.trying = record.offset if trying else -1

    def tried_alone(self, record: Record) -> bool:
        """Whether the last commit names it so."""
        journal = self._journals.get(record.topic_partition)
        return journal is not None and journal.marked_alone(record.offset)

    def ends_the_process(self, record: Record) -> None:
        """Work on it failed as nobody foresaw. However orderly the process ends, that is a death:
        nothing more is committed of its partition, whose reservation stays open."""
        self._deadly.add(record.topic_partition)

    def committable(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """What the broker should know and does not, of every partition."""
        return self._to_commit(self._journals, closing=False)

    def closing(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """What the broker should know when ``partitions`` are given up in good order."""
        return self._to_commit(
            [each for each in partitions if each in self._journals], closing=True
        )

    def committed(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """The broker acknowledged these."""
        for partition, committed in offsets.items():
            if (journal := self._journals.get(partition)) is not None:
                journal.written(Note.parse(committed.metadata))
                self._committed[partition] = committed

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """These partitions are no longer ours."""
        self._watermarks.forget(partitions)
        for partition in partitions:
            self._journals.pop(partition, None)
            self._committed.pop(partition, None)
            self._deadly.discard(partition)

    def _to_commit(
        self, partitions: Iterable[TopicPartition], *, closing: bool
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        offsets = {}
        for partition in partitions:
            if partition in self._deadly:
                continue
            journal = self._journals[partition]
            watermark = self._watermarks.watermark(partition)
            polled = self._watermarks.last_polled(partition)
            idle = closing or self._watermarks.idle(partition)
            note = journal.note(watermark, polled, idle=idle)
            committed = OffsetAndMetadata(watermark, str(note))
            if committed != self._committed.get(partition):
                offsets[partition] = committed
                journal.writing(note, polled)
        return offsets
