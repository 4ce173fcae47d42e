"""In which order answers come, and what happens to them when a transaction fails."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes_broker import FakeTransactions
from tests.rig import FIRST, REQUESTS, VERDICTS, World, metric, until
from worker.errors import MalformedReason
from worker.seams import Fenced
from worker.turns import Turns
from worker.types import TopicPartition

BOTH = pytest.mark.parametrize("exactly_once", [False, True])


def order(world: World) -> list[str]:
    """Request ids, as their verdicts lie on the topic."""
    bodies = [record.value or b"" for record in world.broker.records(VERDICTS)]
    return [body.split(b'"request_id":"')[1].split(b'"')[0].decode() for body in bodies]


@BOTH
async def test_verdicts_of_one_key_come_in_the_order_of_their_requests(
    world: World, exactly_once: bool
) -> None:
    for name in "abcd":
        world.ask(name, hold=True, key=b"item")
    rig = await world.start(exactly_once=exactly_once)
    await until(lambda: world.fetcher.active == 4)
    for name in "dcba":
        world.release(name)
    await until(lambda: rig.committed() == 4)
    assert order(world) == list("abcd")


async def test_turns_of_a_partition_that_came_back_wait_for_nothing_from_before() -> None:
    turns = Turns()
    other = TopicPartition(REQUESTS, 1)
    with turns.ticket((FIRST, b"item")), turns.ticket((other, b"item")):
        turns.forget([FIRST])
        with turns.ticket((FIRST, b"item")) as turn:
            assert turn is None
        with turns.ticket((other, b"item")) as turn:
            assert turn is not None


async def test_verdicts_of_other_keys_do_not_wait_at_least_once(world: World) -> None:
    world.ask("slow", hold=True, key=b"one item")
    world.ask("quick", key=b"another")
    rig = await world.start()
    await rig.verdict("quick")
    assert order(world) == ["quick"]


async def test_verdicts_of_requests_without_a_key_do_not_wait_at_least_once(world: World) -> None:
    for name in ("slow", "quick"):
        sent = world.ask(name, hold=name == "slow", key=b"x")
        world.broker.logs[FIRST][-1] = type(sent)(REQUESTS, 0, sent.offset, None, sent.value)
    rig = await world.start()
    await rig.verdict("quick")


async def test_verdicts_come_in_the_order_of_all_requests_exactly_once(world: World) -> None:
    for name in "abc":
        world.ask(name, hold=name == "a")
    rig = await world.start(exactly_once=True)
    await until(lambda: metric("in_flight_requests", lane="live") == 3)
    await rig.polled_on()
    assert order(world) == []
    world.release("a")
    await until(lambda: rig.committed() == 3)
    assert order(world) == list("abc")


async def test_answers_that_wait_for_their_transaction_take_up_room(world: World) -> None:
    for name in "abcdef":
        world.ask(name, hold=name == "a")
    rig = await world.start(exactly_once=True, in_flight=3)
    await until(lambda: rig.source.rooms[-3:] == [0, 0, 0])
    assert len(world.fetcher.asked) == 3
    world.release("a")
    await until(lambda: rig.committed() == 6)


async def test_aborted_transaction_is_tried_again_and_seen_once(world: World) -> None:
    for name in "abc":
        world.ask(name)
    before = metric("transactions_aborted_total")
    rig = await world.start(exactly_once=True)
    rig.transactions.aborts = 2
    await until(lambda: rig.committed() == 3)
    assert order(world) == list("abc")
    assert metric("transactions_aborted_total") == before + 2
    assert len(world.fetcher.asked) == 3  # what was worked out is kept


async def test_worker_whose_transactional_id_another_took_over_ends(world: World) -> None:
    rig = await world.start(exactly_once=True)
    await FakeTransactions(world.broker).start()
    world.ask("a")
    with pytest.raises(ExceptionGroup) as ended:
        await rig.running
    assert ended.group_contains(Fenced)
    assert order(world) == []


async def test_what_was_lost_before_its_transaction_is_answered_by_the_next_owner_alone(
    world: World,
) -> None:
    for name in "ab":
        world.ask(name, hold=name == "a")
    rig = await world.start(exactly_once=True)
    await until(lambda: metric("in_flight_requests", lane="live") == 2)
    await rig.polled_on()
    await rig.source.lose([FIRST])
    world.release("a")
    await rig.polled_on()
    assert order(world) == []
    rig.source.assign([FIRST])
    await until(lambda: rig.committed() == 2)
    assert order(world) == ["a", "b"]


async def test_revoked_partition_is_answered_and_committed_in_a_last_transaction(
    world: World,
) -> None:
    world.ask("a", hold=True)
    rig = await world.start(exactly_once=True)
    await until(lambda: world.fetcher.active == 1)
    revoking = asyncio.create_task(rig.source.revoke([FIRST]))
    await rig.polled_on()
    world.release("a")
    await revoking
    assert (order(world), rig.committed(), rig.note()) == (["a"], 1, "")


@BOTH
async def test_stopping_answers_what_is_in_work(world: World, exactly_once: bool) -> None:
    world.ask("a", hold=True)
    rig = await world.start(exactly_once=exactly_once)
    await until(lambda: world.fetcher.active == 1)
    rig.stop.set()
    world.release("a")
    await rig.running
    await rig.source.close()
    assert (order(world), rig.committed(), rig.note()) == (["a"], 1, "")


async def test_transaction_under_way_when_the_worker_stops_is_not_done_again(world: World) -> None:
    world.ask("a", hold=True)
    rig = await world.start(exactly_once=True, drain_seconds=0.01)
    await until(lambda: world.fetcher.active == 1)
    rig.transactions.may_end.clear()
    world.release("a")
    await until(lambda: rig.transactions.under_way == 1)
    rig.stop.set()
    await rig.running
    rig.transactions.may_end.set()
    await until(lambda: rig.committed() == 1 and not rig.transactions.under_way)
    assert order(world) == ["a"]


@BOTH
async def test_dead_letter_is_acknowledged_with_its_offset(
    world: World, exactly_once: bool
) -> None:
    world.send(b"k", b"not JSON")
    rig = await world.start(exactly_once=exactly_once)
    await until(lambda: rig.committed() == 1)
    assert [letter.reason for letter in rig.dead_letters()] == [MalformedReason.NOT_JSON]


async def test_later_request_of_a_key_is_left_to_the_next_owner_with_the_earlier_one(
    world: World,
) -> None:
    for name in "ab":
        world.ask(name, hold=name == "a", key=b"item")
    rig = await world.start(drain_seconds=0.01)
    await until(lambda: len(world.fetcher.asked) == 2)
    await rig.stopped()
    world.release("a")
    assert order(world) == []


async def test_answer_too_large_for_its_topic_becomes_a_dead_letter(world: World) -> None:
    world.ask("large", metadata={"text": "x" * 3000})
    world.ask("next")
    world.broker.max_message_bytes = 3000
    rig = await world.start()
    await until(lambda: rig.committed() == 2)
    assert [letter.reason for letter in rig.dead_letters()] == [MalformedReason.ANSWER_TOO_LARGE]
    assert order(world) == ["next"]
