"""An in-memory broker: what source and publisher do, without a network or a clock of its own."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from worker.rebalance import Drain, Forget
from worker.seams import Aborted, Fenced, TooLarge
from worker.types import Message, OffsetAndMetadata, Record, TopicPartition

_POLL_SECONDS = 0.005


def size_of(message: Message) -> int:
    """Keys and headers count too."""
    size = len(message.key or b"") + len(message.value or b"")
    return size + sum(len(name) + len(value) for name, value in message.headers)


@dataclass
class FakeBroker:
    """Topics, and what groups committed. ``max_message_bytes`` is what a topic takes."""

    max_message_bytes: int = 1024 * 1024
    logs: dict[TopicPartition, list[Record]] = field(default_factory=dict)
    ends: dict[TopicPartition, int] = field(default_factory=dict)
    committed: defaultdict[str, dict[TopicPartition, OffsetAndMetadata]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    members: defaultdict[str, list[FakeSource]] = field(default_factory=lambda: defaultdict(list))
    generations: Counter[str] = field(default_factory=Counter)
    producers: dict[str, FakeTransactions] = field(default_factory=dict)

    def create(self, topic: str, partitions: int = 1) -> None:
        for number in range(partitions):
            self.logs[TopicPartition(topic, number)] = []
            self.ends[TopicPartition(topic, number)] = 0

    def partitions_of(self, topics: Collection[str]) -> list[TopicPartition]:
        return [each for each in self.logs if each.topic in topics]

    def append(self, message: Message) -> Record:
        """To the partition of its key."""
        if (size := size_of(message)) > self.max_message_bytes:
            raise TooLarge(f"{size} bytes for the topic {message.topic}")
        partitions = self.partitions_of([message.topic])
        partition = partitions[zlib.crc32(message.key or b"") % len(partitions)]
        record = Record(
            topic=message.topic,
            partition=partition.partition,
            offset=self.ends[partition],
            key=message.key,
            value=message.value,
            headers=message.headers,
        )
        self.logs[partition].append(record)
        self.ends[partition] += 1
        return record

    def leave_gap(self, partition: TopicPartition, offsets: int) -> None:
        """Offsets that no record has, as after compaction or a transaction's marker."""
        self.ends[partition] += offsets

    def records(self, topic: str) -> list[Record]:
        return [record for each in self.partitions_of([topic]) for record in self.logs[each]]


class FakeMembership(NamedTuple):
    """Good for as long as no partition of the group moves."""

    group: str
    generation: int


class FakeSource:
    """``seams.Source``. The first member of a group gets every partition; rebalances are made by
    hand, with ``assign``, ``revoke`` and ``lose``."""

    def __init__(self, broker: FakeBroker, *, topics: Collection[str], group: str) -> None:
        self.broker = broker
        self._topics = topics
        self._group = group
        self._positions: dict[TopicPartition, int] = {}

    async def start(self, *, drain: Drain, forget: Forget) -> None:
        self._drain = drain
        self._forget = forget
        members = self.broker.members[self._group]
        taken = {partition for member in members for partition in member._positions}
        members.append(self)
        self.assign(set(self.broker.partitions_of(self._topics)) - taken)

    async def poll(self, room: int) -> Sequence[Record]:
        await asyncio.sleep(0)
        records: list[Record] = []
        for partition, position in self._positions.items():
            ahead = [r for r in self.broker.logs[partition] if r.offset >= position]
            # objects of our own: what was polled before a rebalance is not what is polled after it
            taken = [replace(record) for record in ahead[: room - len(records)]]
            if taken:
                self._positions[partition] = taken[-1].offset + 1
            records += taken
        if not records:
            await asyncio.sleep(_POLL_SECONDS)
        return records

    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata | None]:
        await asyncio.sleep(0)
        return {each: self.broker.committed[self._group].get(each) for each in partitions}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        await asyncio.sleep(0)
        self._commit({tp: offset for tp, offset in offsets.items() if tp in self._positions})

    def membership(self) -> FakeMembership:
        joined = self in self.broker.members[self._group]
        return FakeMembership(self._group, self.broker.generations[self._group] if joined else -1)

    def lag(self) -> Mapping[TopicPartition, int]:
        return {each: self.broker.ends[each] - at for each, at in self._positions.items()}

    async def close(self) -> None:
        if self in self.broker.members[self._group]:
            await self.revoke(list(self._positions))
            self.broker.members[self._group].remove(self)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        self.broker.generations[self._group] += 1
        committed = self.broker.committed[self._group]
        self._positions |= {
            each: committed[each].offset if each in committed else 0 for each in partitions
        }

    async def revoke(self, partitions: Collection[TopicPartition]) -> None:
        """Announced, so what is in flight may finish and be committed."""
        self._commit(await self._drain(partitions))
        await self.lose(partitions)

    async def lose(self, partitions: Collection[TopicPartition]) -> None:
        """Found out afterwards: the member was thrown out of the group."""
        self.broker.generations[self._group] += 1
        for each in partitions:
            del self._positions[each]
        self._forget(partitions)

    def _commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        self.broker.committed[self._group].update(offsets)


class FakePublisher:
    """``seams.Publisher``. While ``acknowledging`` is not set, no message is acknowledged."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.acknowledging = asyncio.Event()
        self.acknowledging.set()

    async def start(self) -> None:
        pass

    async def publish(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.broker.append(message)
        await self.acknowledging.wait()

    def fits(self, message: Message) -> bool:
        return size_of(message) <= self.broker.max_message_bytes

    async def close(self) -> None:
        pass


class FakeTransactions:
    """``seams.Transactions``. The last one to start with a transactional id is the one that has
    it. ``aborts`` is how many of the next commits abort; ``under_way`` those that have begun and
    wait until they ``may_end``."""

    def __init__(self, broker: FakeBroker, *, transactional_id: str = "worker") -> None:
        self.broker = broker
        self.aborts = 0
        self.under_way = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._transactional_id = transactional_id

    async def start(self) -> None:
        self.broker.producers[self._transactional_id] = self

    def fits(self, message: Message) -> bool:
        return size_of(message) <= self.broker.max_message_bytes

    async def commit(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: object,
    ) -> None:
        """Goes on when it is cancelled, as the real one does on its thread."""
        await asyncio.shield(asyncio.ensure_future(self._commit(messages, offsets, membership)))

    async def _commit(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: object,
    ) -> None:
        self.under_way += 1
        await self.may_end.wait()
        self.under_way -= 1
        await asyncio.sleep(0)
        assert isinstance(membership, FakeMembership)
        for message in messages:
            if not self.fits(message):
                raise TooLarge(f"{size_of(message)} bytes for the topic {message.topic}")
        if self.broker.producers[self._transactional_id] is not self:
            raise Fenced(self._transactional_id)
        if self.aborts:
            self.aborts -= 1
            raise Aborted("as told")
        if membership.generation != self.broker.generations[membership.group]:
            raise Aborted(f"{membership} is of the past")
        written = [self.broker.append(message) for message in messages]
        for partition in {record.topic_partition for record in written}:
            self.broker.leave_gap(partition, 1)
        self.broker.committed[membership.group].update(offsets)

    async def close(self) -> None:
        pass
