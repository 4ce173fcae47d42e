"""The main path on an in-memory broker: verdicts, dead letters, commits, bounds, rebalances."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes_broker import FakePublisher
from tests.fakes_images import FakeFetcher, not_found
from tests.policy_factory import category, policy_bytes
from tests.rig import DEAD, FIRST, REQUESTS, VERDICTS, World, letter_of, metric, until
from worker.brake import Brake
from worker.errors import ErrorCode, MalformedReason
from worker.types import Fetched, Headers, Message, NotModified, TopicPartition

# ---------------------------------------------------------------- verdicts


async def test_request_gets_a_verdict_by_what_its_image_shows(world: World) -> None:
    world.ask("red")
    world.ask("blue", b"blue")
    rig = await world.start()
    assert (await rig.verdict("red")).decision == "review"
    assert (await rig.verdict("blue")).decision == "allow"


async def test_image_in_the_request_itself_is_not_fetched(world: World) -> None:
    world.ask("inline", data=base64.b64encode(b"red").decode())
    rig = await world.start()
    assert (await rig.verdict("inline")).decision == "review"
    assert world.fetcher.asked == []


async def test_verdict_is_keyed_by_its_item_and_carries_the_trace_on(world: World) -> None:
    trace = (("traceparent", b"00-1-2-01"), ("tracestate", b"v=1"))
    world.ask("a", item_id="item", headers=(("x", b"y"), *trace))
    rig = await world.start()
    await rig.verdict("a")
    [record] = world.broker.records(VERDICTS)
    assert (record.key, record.headers) == (b"item", trace)


async def test_request_names_the_policy_that_judges_it(world: World) -> None:
    other = policy_bytes(category(prompts=["blue"], contrast=["red"]), id="other")
    world.ask("a", policy="other")
    rig = await world.start(policies=[policy_bytes(category()), other])
    verdict = await rig.verdict("a")
    assert (verdict.policy.id, verdict.decision) == ("other", "allow")


async def test_one_line_tells_all_of_a_request_and_no_credential(world: World) -> None:
    logging.getLogger("worker").setLevel(logging.INFO)
    with capture_logs() as lines:
        secret = f"{world.url('a')}?token=hunter2"
        world.fetcher.serves[secret] = not_found()
        world.ask("a", url=secret, tenant="shop")
        rig = await world.start()
        await rig.verdict("a")
        await until(lambda: any(line["event"] == "request" for line in lines))
    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["request_id"], line["tenant"], line["offset"]) == ("a", "shop", 0)
    assert (line["decision"], line["error"]) == ("undetermined", "http_client_error")
    assert "hunter2" not in repr(lines)
    assert all(b"hunter2" not in (r.value or b"") for r in world.broker.records(VERDICTS))


# ---------------------------------------------------------------- not examined


@pytest.mark.parametrize("action", ["allow", "review", "block"])
async def test_unexamined_image_gets_the_action_that_on_error_says(
    world: World, action: str
) -> None:
    world.ask("a", not_found())
    rig = await world.start(policies=[policy_bytes(category(), on_error=action)])
    verdict = await rig.verdict("a")
    assert (verdict.decision, verdict.action) == ("undetermined", action)
    assert verdict.error is not None
    assert verdict.error.code == ErrorCode.HTTP_CLIENT_ERROR


async def test_allowing_what_nobody_examined_is_counted(world: World) -> None:
    open_policy = policy_bytes(category(), id="fails-open", on_error="allow")
    closed_policy = policy_bytes(category(), id="fails-closed", on_error="review")
    before = metric("fail_open_total", policy="fails-open")
    world.ask("a", not_found(), policy="fails-open")
    world.ask("b", not_found(), policy="fails-closed")
    world.ask("c", b"blue", policy="fails-open")
    rig = await world.start(policies=[open_policy, closed_policy])
    await until(lambda: rig.committed() == 3)
    assert metric("fail_open_total", policy="fails-open") == before + 1
    assert metric("fail_open_total", policy="fails-closed") == 0


async def test_request_for_a_policy_nobody_loaded_is_undetermined(world: World) -> None:
    world.ask("a", policy="nope")
    rig = await world.start(policies=[policy_bytes(category(), on_error="block")])
    verdict = await rig.verdict("a")
    assert verdict.error is not None
    assert (verdict.error.code, verdict.action) == (ErrorCode.UNKNOWN_POLICY, "block")
    assert world.fetcher.asked == []


async def test_request_past_its_deadline_is_undetermined_and_nothing_is_fetched(
    world: World,
) -> None:
    world.ask("late", deadline="2001-01-01T00:00:00Z")
    world.ask("early", deadline="9000-01-01T00:00:00Z")
    rig = await world.start()
    verdict = await rig.verdict("late")
    assert verdict.error is not None
    assert verdict.error.code == ErrorCode.DEADLINE_EXCEEDED
    assert (await rig.verdict("early")).status == "ok"
    assert world.fetcher.asked == [(world.url("early"), None)]


async def test_policy_that_a_late_request_names_says_what_that_means(world: World) -> None:
    strict = policy_bytes(category(), id="strict", on_error="block")
    world.ask("late", deadline="2001-01-01T00:00:00Z", policy="strict")
    rig = await world.start(policies=[policy_bytes(category(), on_error="allow"), strict])
    verdict = await rig.verdict("late")
    assert (verdict.policy.id, verdict.action) == ("strict", "block")


# ---------------------------------------------------------------- dead letters


async def test_malformed_record_becomes_a_dead_letter_and_the_next_is_judged(
    world: World,
) -> None:
    headers = (("traceparent", b"00-1-2-01"), ("odd", b"\xff\x00"))
    sent = world.send(b"\xffkey", b"\xffthis is not JSON", headers)
    world.ask("next")
    rig = await world.start()
    await rig.verdict("next")
    await until(lambda: rig.committed() == 2)
    [dead] = world.broker.records(DEAD)
    assert (dead.key, dead.value) == (sent.key, sent.value)
    assert dead.headers[:-1] == headers
    letter = letter_of(dead)
    assert letter.reason == MalformedReason.NOT_JSON
    assert letter.source.model_dump() == {"topic": REQUESTS, "partition": 0, "offset": 0}
    assert letter.value_included


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "empty"), (b"", "empty"), (b"x" * 100_001, "too_large")]
)
async def test_dead_letter_tells_and_counts_its_reason(
    world: World, value: bytes | None, reason: str
) -> None:
    before = metric("dead_letters_total", reason=reason)
    world.send(b"k", value)
    rig = await world.start()
    await until(lambda: rig.committed() == 1)
    assert [letter_of(dead).reason for dead in world.broker.records(DEAD)] == [reason]
    assert metric("dead_letters_total", reason=reason) == before + 1


async def test_digest_and_coordinates_stand_in_for_a_dead_letter_that_is_too_large(
    world: World,
) -> None:
    value = b"x" * 50_000
    world.send(b"k", value)
    world.ask("next")
    world.broker.max_message_bytes = 10_000
    rig = await world.start()
    await rig.verdict("next")
    [dead] = world.broker.records(DEAD)
    letter = letter_of(dead)
    assert (dead.key, dead.value, letter.value_included) == (b"k", b"", False)
    assert (letter.value_sha256, letter.value_bytes) == (hashlib.sha256(value).hexdigest(), 50_000)
    assert (letter.source.partition, letter.source.offset) == (0, 0)


@pytest.mark.parametrize(
    ("key", "headers"), [(b"k" * 50_000, ()), (b"k", (("large", b"h" * 50_000),))]
)
async def test_malformed_record_with_a_large_key_or_header_does_not_end_the_pipeline(
    world: World, key: bytes, headers: Headers
) -> None:
    world.send(key, b"not JSON", headers)
    world.ask("next")
    world.broker.max_message_bytes = 10_000
    rig = await world.start()
    await rig.verdict("next")
    await until(lambda: rig.committed() == 2)
    [dead] = world.broker.records(DEAD)
    assert letter_of(dead).source.offset == 0


# ---------------------------------------------------------------- commits


async def test_verdict_is_acknowledged_before_its_offset_is_committed(world: World) -> None:
    world.ask("a")
    rig = await world.start()
    rig.publisher.acknowledging.clear()
    await rig.verdict("a")
    await rig.polled_on()
    assert rig.committed() is None
    rig.publisher.acknowledging.set()
    await until(lambda: rig.committed() == 1)


async def test_dead_letter_is_acknowledged_before_its_offset_is_committed(world: World) -> None:
    world.send(b"k", b"not JSON")
    rig = await world.start()
    rig.publisher.acknowledging.clear()
    await until(lambda: bool(world.broker.records(DEAD)))
    await rig.polled_on()
    assert rig.committed() is None
    rig.publisher.acknowledging.set()
    await until(lambda: rig.committed() == 1)


async def test_commit_stays_behind_the_first_unanswered_record(world: World) -> None:
    for name in "abcd":
        world.ask(name, hold=name == "b")
    rig = await world.start()
    await until(lambda: set(rig.verdicts()) == {"a", "c", "d"})
    await rig.polled_on()
    assert rig.committed() == 1
    world.release("b")
    await until(lambda: rig.committed() == 4)


async def test_nothing_is_committed_twice(world: World) -> None:
    world.ask("a")
    rig = await world.start()
    await until(lambda: rig.committed() == 1)
    await until(lambda: rig.note() == "")
    commits = len(rig.source.commits)
    await rig.polled_on(10)
    assert len(rig.source.commits) == commits


# ---------------------------------------------------------------- bounds


async def test_no_more_records_are_polled_than_may_be_in_flight(world: World) -> None:
    names = [f"image-{number}" for number in range(12)]
    for name in names:
        world.ask(name, hold=True)
    rig = await world.start(in_flight=3)
    await until(lambda: world.fetcher.active == 3)
    await rig.polled_on()
    assert metric("in_flight_requests", lane="live") == 3
    for name in names:
        world.release(name)
    await until(lambda: rig.committed() == len(names))
    assert world.fetcher.most_active == 3
    assert all(0 <= room <= 3 for room in rig.source.rooms)


async def test_polling_goes_on_while_there_is_no_room(world: World) -> None:
    world.ask("a", hold=True)
    rig = await world.start(in_flight=1)
    await until(lambda: rig.source.rooms[-3:] == [0, 0, 0])


# ---------------------------------------------------------------- bugs


async def test_bug_ends_the_pipeline_and_nothing_from_its_record_on_is_committed(
    world: World,
) -> None:
    world.ask("a")
    world.ask("b", ZeroDivisionError("a bug"), hold=True)
    world.ask("c")
    rig = await world.start()
    await until(lambda: set(rig.verdicts()) == {"a", "c"})
    await until(lambda: rig.committed() == 1)
    world.release("b")
    with pytest.raises(ExceptionGroup) as ended:
        await rig.running
    assert [type(error) for error in ended.value.exceptions] == [ZeroDivisionError]
    await rig.source.close()
    assert rig.committed() == 1


async def test_stage_that_ends_under_a_request_ends_the_pipeline(world: World) -> None:
    class GivenUp(FakeFetcher):
        async def fetch(self, url: str, **_: Any) -> Fetched | NotModified:
            raise asyncio.CancelledError

    world.fetcher = GivenUp()
    world.ask("a")
    rig = await world.start()
    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(30):
            await rig.running
    assert ended.group_contains(RuntimeError, match="offset 0")
    assert rig.committed() is None


async def test_publisher_that_fails_ends_the_pipeline(world: World) -> None:
    class Broken(FakePublisher):
        async def publish(self, message: Message) -> None:
            raise ConnectionError("no broker")

    world.ask("a")
    rig = await world.start(publisher=Broken)
    with pytest.raises(ExceptionGroup) as ended:
        await rig.running
    assert [type(error) for error in ended.value.exceptions] == [ConnectionError]
    assert rig.committed() is None


# ---------------------------------------------------------------- stopping


async def test_stopping_finishes_what_is_in_flight_and_takes_nothing_new(world: World) -> None:
    world.ask("a", hold=True)
    rig = await world.start()
    await until(lambda: world.fetcher.active == 1)
    rig.stop.set()
    polls = len(rig.source.rooms)
    world.ask("too-late")
    world.release("a")
    await rig.running
    assert set(rig.verdicts()) == {"a"}
    assert rig.committed() == 1
    assert len(rig.source.rooms) <= polls + 1


async def test_what_is_unfinished_at_the_drain_deadline_is_not_committed(world: World) -> None:
    for name in "abc":
        world.ask(name, hold=name == "b")
    rig = await world.start(drain_seconds=0.01)
    await until(lambda: set(rig.verdicts()) == {"a", "c"})
    await rig.stopped()
    await rig.source.close()
    assert rig.committed() == 1
    assert set(rig.verdicts()) == {"a", "c"}


async def test_stopping_with_nothing_in_flight_returns(world: World) -> None:
    rig = await world.start()
    await rig.stopped()
    assert rig.source.commits == []


# ---------------------------------------------------------------- rebalances


@pytest.fixture
def two(world: World) -> dict[TopicPartition, str]:
    """Two partitions, and the name of a request that is held in each."""
    world.broker.create(REQUESTS, 2)
    held: dict[TopicPartition, str] = {}
    while len(held) < 2:
        name = f"image-{len(world.fetcher.serves)}"
        partition = world.ask(name, hold=True).topic_partition
        if held.setdefault(partition, name) != name:
            world.release(name)
    return held


async def test_partition_that_is_taken_away_is_drained_and_committed_first(
    world: World, two: dict[TopicPartition, str]
) -> None:
    rig = await world.start(drain_seconds=3600)
    (mine, held), (other, _) = two.items()
    await until(lambda: {world.url(n) for n in two.values()} <= {u for u, _ in world.fetcher.asked})
    revoking = asyncio.create_task(rig.source.revoke([mine]))
    await rig.polled_on()
    assert not revoking.done()
    world.release(held)
    async with asyncio.timeout(30):
        await revoking  # though the other partition's request is still held
    assert rig.committed(mine) == world.broker.ends[mine]
    assert rig.committed(other) != world.broker.ends[other]
    assert metric("consumer_lag_records", topic=REQUESTS, partition=str(mine.partition)) == 0


async def test_drain_gives_up_at_its_deadline_and_returns_what_may_be_committed(
    world: World,
) -> None:
    for name in "abc":
        world.ask(name, hold=name == "b")
    rig = await world.start(drain_seconds=0.01)
    await until(lambda: set(rig.verdicts()) == {"a", "c"})
    await until(lambda: rig.committed() == 1)
    assert await rig.pipeline.drain([FIRST]) == {FIRST: (1, "")}
    assert await rig.pipeline.drain([TopicPartition("another", 7)]) == {}


async def test_what_finishes_after_its_partition_was_lost_counts_no_more(world: World) -> None:
    world.ask("a", hold=True)
    rig = await world.start()
    await until(lambda: world.fetcher.active == 1)
    await rig.source.lose([FIRST])
    world.release("a")
    first = await rig.verdict("a")
    await rig.polled_on()
    assert rig.committed() is None
    rig.source.assign([FIRST])  # ours again: it is read again, and its verdict is a repeat
    await until(lambda: rig.committed() == 1)
    assert [verdict.verdict_id for verdict in rig.all_verdicts()] == [first.verdict_id] * 2


# ---------------------------------------------------------------- lists and brakes

HASH = "0f" * 32


def listing(world: World, action: str, *, id: str = "listing", **keys: Any) -> bytes:
    """A policy whose list has the hash of red images."""
    world.decoder.hashes[b"red"] = HASH
    (world.folder / "known.txt").write_text(f"# known\n{HASH}\n")
    lists = [{"id": "known", "file": "known.txt", "action": action}]
    return policy_bytes(category(), id=id, lists=lists, **keys)


async def test_image_on_a_list_is_settled_by_it_and_counted(world: World) -> None:
    policy = listing(world, "block", id="lists-block")
    world.ask("a")
    world.ask("b", b"blue")
    rig = await world.start(policies=[policy])
    verdict = await rig.verdict("a")
    assert (verdict.decision, verdict.action, verdict.categories) == ("block", "block", ())
    assert verdict.listed is not None
    assert (verdict.listed.id, verdict.listed.distance) == ("known", 0)
    assert (await rig.verdict("b")).listed is None
    await until(lambda: rig.committed() == 2)
    assert metric("listed_total", policy="lists-block", list="known", action="block") == 1


async def test_policies_with_other_lists_judge_one_image_at_once_each_by_its_own(
    world: World,
) -> None:
    policies = [
        listing(world, "block", id="blocks"),
        listing(world, "allow", id="allows"),
        policy_bytes(category(), id="scores"),
    ]
    world.fetcher.serves["http://images.test/one"] = Fetched(b"red")
    gate = world.fetcher.hold("http://images.test/one")
    for policy in ("blocks", "allows", "scores"):
        world.ask(policy, url="http://images.test/one", policy=policy)
    rig = await world.start(policies=policies)
    await until(lambda: world.fetcher.active == 3)
    gate.set()
    verdicts = [await rig.verdict(policy) for policy in ("blocks", "allows", "scores")]
    assert [verdict.decision for verdict in verdicts] == ["block", "allow", "review"]


def braking(id: str, **keys: Any) -> bytes:
    """A policy that blocks what is red, and brakes when more than half of five would be."""
    limits = {"max_block_rate": {"per": "10m", "share": 0.5, "min_requests": 5}}
    red = category(block=0.5, block_uncalibrated=True)
    return policy_bytes(red, id=id, limits=limits, **keys)


async def test_block_becomes_review_once_too_many_would_be_blocked(world: World) -> None:
    rig = await world.start(
        policies=[braking("brakes"), braking("free")], brake=Brake(None), in_flight=1
    )
    for number in range(8):
        world.ask(f"r{number}", tenant="shop")
    world.ask("fine", b"blue", tenant="shop")
    world.ask("other tenant", tenant="other")
    world.ask("other policy", tenant="shop", policy="free")
    await until(lambda: rig.committed() == 11)
    verdicts = rig.verdicts()
    assert [verdicts[f"r{number}"].action for number in range(8)] == ["block"] * 4 + ["review"] * 4
    held = verdicts["r7"].brake
    assert held is not None
    assert (held.would_have_been, held.share, held.requests, held.scope) == (
        "block",
        1.0,
        8,
        "worker",
    )
    others = [verdicts[name] for name in ("fine", "other tenant", "other policy")]
    assert [verdict.action for verdict in others] == ["allow", "block", "block"]
    assert all(verdict.brake is None for verdict in others)
    assert metric("braked_total", policy="brakes") == 4
    assert metric("braked_total", policy="free") == 0


async def test_list_that_blocks_counts_for_the_brake_and_is_braked(world: World) -> None:
    limits = {"max_block_rate": {"per": "10m", "share": 0.5, "min_requests": 5}}
    rig = await world.start(
        policies=[listing(world, "block", limits=limits)], brake=Brake(None), in_flight=1
    )
    for number in range(6):
        world.ask(f"r{number}")
    verdict = await rig.verdict("r5")
    assert verdict.listed is not None
    assert verdict.listed.action == "block"
    assert (verdict.action, verdict.brake is not None) == ("review", True)


async def test_requests_that_are_delivered_again_do_not_brake(world: World) -> None:
    rig = await world.start(policies=[braking("again")], brake=Brake(None), in_flight=1)
    for _ in range(5):
        for number in range(4):
            world.ask(f"r{number}")
    await until(lambda: rig.committed() == 20)
    assert {verdict.action for verdict in rig.all_verdicts()} == {"block"}


async def test_what_nobody_could_examine_is_braked_too(world: World) -> None:
    rig = await world.start(
        policies=[braking("blind", on_error="block")], brake=Brake(None), in_flight=1
    )
    for number in range(6):
        world.ask(f"r{number}", not_found())
    verdict = await rig.verdict("r5")
    assert (verdict.decision, verdict.action) == ("undetermined", "review")
    assert verdict.brake is not None
