"""How answers and offsets reach the broker: at least once, or exactly once.

Both hold to the same rule: an offset is committed only when the answers to its record and to all
below it are acknowledged. They differ in when an answer is published: as soon as it is there, or
together with the offset that it answers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from worker import telemetry
from worker.ledger import Ledger
from worker.seams import Aborted, Publisher, Source, Transactions
from worker.types import Message, OffsetAndMetadata, Record, TopicPartition

_log = structlog.get_logger(__name__)

Offsets = Mapping[TopicPartition, OffsetAndMetadata]


@dataclass(frozen=True, slots=True)
class _Answered:
    messages: Sequence[Message]
    told: Callable[[], None]


#: At the end of an assignment a transaction is tried so often; then the work is done again by the
#: new owner. Between two tries a rebalance may get on.
_LAST_TRIES = 5
_BETWEEN_TRIES_SECONDS = 0.2


class Delivery(Protocol):
    @property
    def held(self) -> int:
        """Records that are answered, whose answers wait for their release."""
        ...

    async def release(
        self, record: Record, messages: Sequence[Message], told: Callable[[], None]
    ) -> None:
        """The answer to ``record``; ``told`` is called once it is acknowledged. Those of one key
        come in order."""
        ...

    async def commit(self) -> bool:
        """What can be committed now; whether it was."""
        ...

    async def hand_over(self, partitions: Collection[TopicPartition]) -> Offsets:
        """Before partitions are given up. Returns what the group is still to commit of them."""
        ...

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """They are no longer ours."""
        ...


class AtLeastOnce:
    """Answers are published at once, and offsets committed behind them: after a crash records are
    answered twice, never not at all."""

    held = 0

    def __init__(self, *, publisher: Publisher, source: Source, ledger: Ledger) -> None:
        self._publisher = publisher
        self._source = source
        self._ledger = ledger

    async def release(
        self, record: Record, messages: Sequence[Message], told: Callable[[], None]
    ) -> None:
        for message in messages:
            await self._publisher.publish(message)
        self._ledger.done(record)
        told()

    async def commit(self) -> bool:
        if offsets := self._ledger.committable():
            await self._source.commit(offsets)
            self._ledger.committed(offsets)
        return True

    async def hand_over(self, partitions: Collection[TopicPartition]) -> Offsets:
        return self._ledger.closing(partitions)

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        pass


class ExactlyOnce:
    """Answers wait until all below them are there, and go out in one transaction with the offsets
    they answer. Who reads committed data sees each answer once.

    The offsets carry the source's membership, so the broker refuses those of a worker whose
    partitions have moved on. A transaction that is aborted keeps its answers here for the next
    one; what a worker that ended had not committed is done again by the next owner.
    """

    def __init__(self, *, transactions: Transactions, source: Source, ledger: Ledger) -> None:
        self._transactions = transactions
        self._source = source
        self._ledger = ledger
        self._answers: defaultdict[TopicPartition, dict[int, _Answered]]
        self._answers = defaultdict(dict)
        # Offsets are looked up and committed by one at a time: no commit can overtake another
        self._committing = asyncio.Lock()

    @property
    def held(self) -> int:
        return sum(map(len, self._answers.values()))

    async def release(
        self, record: Record, messages: Sequence[Message], told: Callable[[], None]
    ) -> None:
        if self._ledger.holds(record):
            self._answers[record.topic_partition][record.offset] = _Answered(messages, told)
            self._ledger.done(record)

    async def commit(self) -> bool:
        committed = await self._commit(self._ledger.committable)
        if not committed:
            await asyncio.sleep(_BETWEEN_TRIES_SECONDS)
        return committed

    async def hand_over(self, partitions: Collection[TopicPartition]) -> Offsets:
        for _ in range(_LAST_TRIES):
            if await self._commit(lambda: self._ledger.closing(partitions)):
                break
            await asyncio.sleep(_BETWEEN_TRIES_SECONDS)
        return {}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._answers.pop(partition, None)

    async def _commit(self, due: Callable[[], Offsets]) -> bool:
        """False when the transaction was aborted.

        A transaction that has begun goes on when this is cancelled, and the next one waits for it:
        before it is known to be aborted, its answers must not be given again.
        """
        return await asyncio.shield(asyncio.ensure_future(self._transact(due)))

    async def _transact(self, due: Callable[[], Offsets]) -> bool:
        async with self._committing:
            # The membership first: should partitions move on from here, it is out of date, and
            # the broker refuses it; it does not look at who has which partition
            membership = self._source.membership()
            offsets = due()
            if not offsets:
                return True
            covered = [
                (partition, offset)
                for partition, (end, _) in offsets.items()
                for offset in sorted(self._answers[partition])
                if offset < end
            ]
            messages = [
                message
                for partition, offset in covered
                for message in self._answers[partition][offset].messages
            ]
            try:
                await self._transactions.commit(messages, offsets, membership)
            except Aborted as aborted:
                telemetry.TRANSACTIONS_ABORTED.inc()
                _log.warning("transaction aborted", why=str(aborted), messages=len(messages))
                return False
            self._ledger.committed(offsets)
            for partition, offset in covered:
                if answered := self._answers[partition].pop(offset, None):
                    answered.told()
            return True
