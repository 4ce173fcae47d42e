"""Requests that may succeed later."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from uuid import UUID

from tests.fakes_images import not_found
from tests.rig import RETRIES, VERDICTS, World, until
from worker.errors import ErrorCode, MalformedReason, Stage, Unexaminable
from worker.retries import RETRY_HEADER, Retry, RetryPlan, retry_of
from worker.schema import Verdict, now
from worker.types import Fetched, Message, Record, TopicPartition

PLAN = RetryPlan(RETRIES, attempts=2, delay_seconds=3600)
AT_ONCE = RetryPlan(RETRIES, attempts=2, delay_seconds=0)


def unreachable() -> Unexaminable:
    return Unexaminable(
        ErrorCode.FETCH_TIMEOUT, Stage.FETCH, "no answer", retryable=True, attempts=3
    )


def published(world: World) -> list[Verdict]:
    records = world.broker.records(VERDICTS)
    return [Verdict.model_validate_json(record.value or b"") for record in records]


async def test_failure_that_may_pass_gets_its_verdict_at_once_and_a_retry(world: World) -> None:
    sent = world.ask("a", unreachable(), headers=(("traceparent", b"00-1"), ("other", b"x")))
    rig = await world.start(retries=PLAN)
    verdict = await rig.verdict("a")
    await until(lambda: rig.committed() == 1)
    [record] = world.broker.records(RETRIES)
    retry = retry_of(record)
    assert (record.key, record.value) == (sent.key, sent.value)
    assert dict(record.headers)["traceparent"] == b"00-1"
    assert (retry.number, retry.attempts, retry.supersedes) == (1, 3, verdict.verdict_id)
    assert verdict.error is not None
    assert verdict.error.retry_at == retry.due
    assert verdict.decision == "undetermined"


async def test_retry_is_acknowledged_before_its_offset_is_committed(world: World) -> None:
    world.ask("a", unreachable())
    rig = await world.start(retries=PLAN)
    rig.publisher.acknowledging.clear()
    await rig.verdict("a")
    await rig.polled_on()
    assert rig.committed() is None
    rig.publisher.acknowledging.set()
    await until(lambda: rig.committed() == 1)
    assert len(world.broker.records(RETRIES)) == 1


async def test_failure_that_will_not_pass_is_not_tried_again(world: World) -> None:
    world.ask("a", not_found())
    rig = await world.start(retries=PLAN)
    verdict = await rig.verdict("a")
    await until(lambda: rig.committed() == 1)
    assert world.broker.records(RETRIES) == []
    assert verdict.error is not None
    assert verdict.error.retry_at is None


async def test_request_that_would_be_too_late_is_not_tried_again(world: World) -> None:
    world.ask("a", unreachable(), deadline=(now() + timedelta(minutes=1)).isoformat())
    rig = await world.start(retries=PLAN)
    await until(lambda: rig.committed() == 1)
    assert world.broker.records(RETRIES) == []


async def test_retry_that_succeeds_supersedes_the_first_verdict(world: World) -> None:
    world.ask("a", unreachable())
    first = await (await world.start(retries=AT_ONCE)).verdict("a")
    world.fetcher.serves[world.url("a")] = Fetched(b"red")
    await world.start(retries=AT_ONCE, retrying=True)
    await until(lambda: len(published(world)) == 2)
    second = published(world)[1]
    assert (second.status, second.decision) == ("ok", "review")
    assert second.supersedes == first.verdict_id


async def test_retry_that_fails_alike_says_nothing_new_and_is_tried_once_more(
    world: World,
) -> None:
    world.ask("a", unreachable())
    await (await world.start(retries=AT_ONCE)).verdict("a")
    retrying = await world.start(retries=AT_ONCE, retrying=True)
    await until(lambda: retrying.committed(TopicPartition(RETRIES, 0)) == 2)
    assert len(published(world)) == 1
    retries = [retry_of(record) for record in world.broker.records(RETRIES)]
    assert [(retry.number, retry.attempts) for retry in retries] == [(1, 3), (2, 6)]


async def test_retry_that_fails_otherwise_supersedes_and_counts_all_attempts(world: World) -> None:
    world.ask("a", unreachable())
    first = await (await world.start(retries=AT_ONCE)).verdict("a")
    world.fetcher.serves[world.url("a")] = not_found()
    await world.start(retries=AT_ONCE, retrying=True)
    await until(lambda: len(published(world)) == 2)
    second = published(world)[1]
    assert second.error is not None
    assert second.supersedes == first.verdict_id
    assert (second.error.code, second.error.attempts) == (ErrorCode.HTTP_CLIENT_ERROR, 4)


async def test_retry_waits_until_it_is_due_and_stopping_does_not_wait_for_it(world: World) -> None:
    world.ask("a", unreachable())
    await (await world.start(retries=PLAN)).verdict("a")
    fetched = len(world.fetcher.asked)
    retrying = await world.start(retries=PLAN, retrying=True)
    await retrying.polled_on(20)
    await retrying.stopped()
    assert len(world.fetcher.asked) == fetched
    assert retrying.committed(TopicPartition(RETRIES, 0)) is None


async def test_record_on_the_topic_of_retries_that_is_none_becomes_a_dead_letter(
    world: World,
) -> None:
    request = {"schema_version": 1, "request_id": "a", "item_id": "a", "url": world.url("a")}
    value = json.dumps(request).encode()
    without_a_zone = due_at(now()).replace(b'Z"', b'"')
    for headers in ((), ((RETRY_HEADER, b"{}"),), ((RETRY_HEADER, without_a_zone),)):
        world.broker.append(Message(RETRIES, b"k", value, headers))
    rig = await world.start(retries=PLAN, retrying=True)
    await until(lambda: rig.committed(TopicPartition(RETRIES, 0)) == 3)
    assert [letter.reason for letter in rig.dead_letters()] == [MalformedReason.INVALID] * 3


async def test_header_of_a_retry_means_nothing_on_the_topic_of_requests(world: World) -> None:
    retry = Retry(number=9, attempts=9, supersedes=UUID(int=0), due=now() + timedelta(days=1))
    world.ask("a", headers=((RETRY_HEADER, retry.model_dump_json().encode()),))
    rig = await world.start()
    assert (await rig.verdict("a")).supersedes is None


def due_at(due: datetime) -> bytes:
    retry = Retry(number=1, attempts=3, supersedes=UUID(int=0), due=due)
    return retry.model_dump_json().encode()


def wait(due: datetime) -> float:
    headers = ((RETRY_HEADER, due_at(due)),)
    return PLAN.seconds_until_due(Record(RETRIES, 0, 0, None, b"", headers))


def test_retry_waits_until_it_is_due() -> None:
    assert 0 < wait(now() + timedelta(minutes=1)) <= 60
    assert wait(now() - timedelta(minutes=1)) == 0


def test_no_retry_holds_up_those_behind_it_for_longer_than_the_delay() -> None:
    assert wait(now() + timedelta(days=3650)) == PLAN.delay_seconds


def test_what_is_no_retry_is_due() -> None:
    assert PLAN.seconds_until_due(Record(RETRIES, 0, 0, None, b"")) == 0
