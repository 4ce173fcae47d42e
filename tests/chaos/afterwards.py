"""What is to be known when all faults are over: how groups stand, and what is on the topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from kafka.errors import KafkaError

from tests.chaos import groups
from tests.chaos.checks import Asked, Dead, Group, Place, Retried, Said
from worker.demo.stage import Stage
from worker.errors import Malformed
from worker.retries import retry_of
from worker.schema import DEAD_LETTER_HEADER, DeadLetter, Verdict, parse_request
from worker.topics import TopicReader
from worker.types import Record

T = TypeVar("T")

_SETTLE_SECONDS = 150.0
_STEADY_SECONDS = 30.0
_READ_IDLE_SECONDS = 30.0
_LOOK_SECONDS = 1.0


def reads(on: Stage) -> Mapping[str, str]:
    """The topic that each group of workers reads."""
    topics = on.topics
    return {topics.group: topics.requests_topic, f"{topics.group}.retries": topics.retries_topic}


# ---------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class Standing:
    """Of the groups by name, with the fleet up and all faults over."""

    unread: Mapping[str, Mapping[int, int]]
    up: Mapping[str, groups.Membership]


async def standing(on: Stage, partitions: int) -> Standing:
    """Once nothing is unread and all partitions have owners, or when that takes too long."""

    def nothing_unread(unread: Mapping[str, Mapping[int, int]]) -> bool:
        return not any(count for of_group in unread.values() for count in of_group.values())

    def steady(up: Mapping[str, groups.Membership]) -> bool:
        return all(each == ("Stable", partitions) for each in up.values())

    unread = await _once(lambda: asyncio.to_thread(_unread, on), nothing_unread, _SETTLE_SECONDS)
    up = await _once(lambda: asyncio.to_thread(_memberships, on), steady, _STEADY_SECONDS)
    return Standing(unread, up)


async def groups_of(on: Stage, before: Standing, partitions: int) -> list[Group]:
    """After all workers left."""

    def empty(left: Mapping[str, groups.Membership]) -> bool:
        return all(each.state == "Empty" for each in left.values())

    left = await _once(lambda: asyncio.to_thread(_memberships, on), empty, _STEADY_SECONDS)
    return [
        Group(
            name=name,
            state=up.state,
            owned=up.owned,
            partitions=partitions,
            left=left[name].state,
            unread=before.unread[name],
        )
        for name, up in before.up.items()
    ]


async def _once(
    look: Callable[[], Awaitable[T]], satisfied: Callable[[T], bool], seconds: float
) -> T:
    """What ``look`` gives once it is satisfying, or else the last thing it gave."""
    deadline = time.monotonic() + seconds
    while not satisfied(found := await look()) and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
    return found


def _unread(on: Stage) -> Mapping[str, Mapping[int, int]]:
    # Requests first: none that is answered after that makes a retry
    return {group: groups.unread(on.broker, group, topic) for group, topic in reads(on).items()}


def _memberships(on: Stage) -> Mapping[str, groups.Membership]:
    return {group: groups.membership(on.broker, group) for group in reads(on)}


class Pauses:
    """Watches for how long no commit of the workers moves; see ``longest_seconds``."""

    def __init__(self, on: Stage) -> None:
        self._on = on
        self.longest_seconds = 0.0

    async def watch(self) -> None:
        """Until cancelled. Not being told by the brokers counts as no move."""
        last, since = 0, time.monotonic()
        while True:
            with suppress(KafkaError):
                total = await asyncio.to_thread(self._committed)
                if total != last:
                    last, since = total, time.monotonic()
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - since)
            await asyncio.sleep(_LOOK_SECONDS)

    def _committed(self) -> int:
        topics = self._on.topics
        return sum(groups.committed(self._on.broker, topics.group, topics.requests_topic).values())


# ---------------------------------------------------------------- topics


@dataclass(frozen=True, slots=True)
class Topics:
    """What a reader of committed data finds, in the order of partitions and offsets."""

    asked: Sequence[Asked]
    said: Sequence[Said]
    dead: Sequence[Dead]
    retried: Sequence[Retried]


async def read_topics(on: Stage) -> Topics:
    names = on.topics
    return Topics(
        asked=[_asked(record) for record in await _read(on, names.requests_topic)],
        said=[_said(record) for record in await _read(on, names.verdicts_topic)],
        dead=[_dead(record) for record in await _read(on, names.dead_letters_topic)],
        retried=[_retried(record) for record in await _read(on, names.retries_topic)],
    )


async def _read(on: Stage, topic: str) -> list[Record]:
    reader = TopicReader(
        bootstrap=on.broker,
        topic=topic,
        client_id="chaos",
        options={"isolation_level": "read_committed"},
    )
    async with reader:
        records = [record async for record in reader.read_all(idle_seconds=_READ_IDLE_SECONDS)]
    return sorted(records, key=_place)


def _asked(record: Record) -> Asked:
    try:
        name = parse_request(record.value, max_bytes=1_000_000).request_id
    except Malformed:
        name = None
    return Asked(_place(record), record.key, name)


def _said(record: Record) -> Said:
    verdict = Verdict.model_validate_json(record.value or b"")
    return Said(
        place=_place(record),
        request_id=verdict.request_id,
        key=record.key or b"",
        verdict_id=str(verdict.verdict_id),
        supersedes=str(verdict.supersedes) if verdict.supersedes else None,
        decision=verdict.decision,
        action=verdict.action,
        categories=tuple((each.id, each.action, each.margin) for each in verdict.categories),
        error=verdict.error.code.value if verdict.error else None,
        again=bool(verdict.error and verdict.error.retry_at),
        model=verdict.model.name,
    )


def _dead(record: Record) -> Dead:
    why = DeadLetter.model_validate_json(dict(record.headers)[DEAD_LETTER_HEADER])
    source = why.source
    return Dead((source.topic, source.partition, source.offset), why.reason.value)


def _retried(record: Record) -> Retried:
    request = parse_request(record.value, max_bytes=1_000_000)
    return Retried(_place(record), request.request_id, str(retry_of(record).supersedes))


def _place(record: Record) -> Place:
    return record.topic, record.partition, record.offset
