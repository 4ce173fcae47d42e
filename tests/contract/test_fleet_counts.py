"""What a fleet counts together: the same of the fake and of Redis, whatever becomes of Redis."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import pytest
import redis

from tests.contract.redis_server import Server
from tests.fakes_counts import FakeCounts
from tests.policy_factory import category, policy_of
from worker.brake import Brake
from worker.embedded import embedded_redis
from worker.policy import BlockRate, Policy
from worker.redis_counts import RedisCounts
from worker.schema import BrakeRef
from worker.seams import Counted, Counts, CountsAway, FleetCounts, Window
from worker.stores import redis_client

PER = 600.0
NOW = 1_000_000_000.0


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}:"


@pytest.fixture(params=["fake", "redis"])
async def fleet(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[FleetCounts]:
    if request.param == "fake":
        yield FakeCounts()
        return
    counts = redis_counts(request.getfixturevalue("redis_url"), prefix)
    yield counts
    await counts.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """One of its own, to be hurt."""
    with embedded_redis() as url:
        yield Server(url)


def redis_counts(url: str, prefix: str, timeout_seconds: float = 10.0) -> RedisCounts:
    return RedisCounts(redis_client(url), timeout_seconds=timeout_seconds, prefix=prefix)


WINDOW = Window("p", "shop", PER)


def counted(
    numbers: Sequence[int], *, blocked: bool = False, window: Window = WINDOW, at: float = NOW
) -> list[Counted]:
    return [Counted(window, number.to_bytes(8), blocked, at) for number in numbers]


async def test_nothing_was_counted_of_a_window_that_nobody_told_of(fleet: FleetCounts) -> None:
    assert await fleet.exchange([], [WINDOW], NOW) == [Counts(0, 0)]


async def test_what_is_told_is_in_the_answer(fleet: FleetCounts) -> None:
    told = counted(range(7)) + counted(range(7, 10), blocked=True)
    assert await fleet.exchange(told, [WINDOW], NOW) == [Counts(10, 3)]


async def test_request_told_again_counts_once_also_as_blocked(fleet: FleetCounts) -> None:
    await fleet.exchange(counted(range(10)), [], NOW)
    await fleet.exchange(counted(range(5), blocked=True), [], NOW)
    for _ in range(3):
        again = counted(range(5), blocked=True)
        assert await fleet.exchange(again, [WINDOW], NOW) == [Counts(10, 5)]


async def test_request_told_again_in_another_slice_counts_once(fleet: FleetCounts) -> None:
    await fleet.exchange(counted(range(10), blocked=True), [], NOW)
    later = counted(range(10), blocked=True, at=NOW + PER / 2)
    assert await fleet.exchange(later, [WINDOW], NOW + PER / 2) == [Counts(10, 10)]


async def test_windows_are_counted_apart_and_answered_in_order(fleet: FleetCounts) -> None:
    windows = [
        WINDOW,
        WINDOW._replace(tenant=None),
        WINDOW._replace(tenant="None"),
        WINDOW._replace(policy="q"),
        WINDOW._replace(per_seconds=60.0),
    ]
    told = [one for n, window in enumerate(windows) for one in counted(range(n), window=window)]
    answers = await fleet.exchange(told, windows[::-1], NOW)
    assert [counts.requests for counts in answers] == [4, 3, 2, 1, 0]


async def test_window_slides(fleet: FleetCounts) -> None:
    await fleet.exchange(counted(range(10), blocked=True), [], NOW)
    later = NOW + PER * 0.6
    await fleet.exchange(counted(range(20, 25), at=later), [], later)
    assert await fleet.exchange([], [WINDOW], later) == [Counts(15, 10)]
    assert await fleet.exchange([], [WINDOW], NOW + PER * 0.9) == [Counts(15, 10)]
    assert await fleet.exchange([], [WINDOW], NOW + PER) == [Counts(5, 0)]
    assert await fleet.exchange([], [WINDOW], later + PER) == [Counts(0, 0)]


async def test_what_is_told_late_counts_at_its_time(fleet: FleetCounts) -> None:
    late = NOW + PER * 0.6
    await fleet.exchange(counted(range(10)), [], late)
    assert await fleet.exchange([], [WINDOW], late) == [Counts(10, 0)]
    assert await fleet.exchange([], [WINDOW], NOW + PER) == [Counts(0, 0)]


async def test_many_requests_are_counted_to_within_a_few_percent(fleet: FleetCounts) -> None:
    for start in range(0, 20_000, 5_000):
        await fleet.exchange(counted(range(start, start + 5_000), at=NOW + start / 100), [], NOW)
    [counts] = await fleet.exchange([], [WINDOW], NOW + 150)
    assert counts.requests == pytest.approx(20_000, rel=0.04)  # five standard errors


# ---------------------------------------------------------------- what is in Redis


async def test_keys_go_by_themselves_and_tell_of_no_tenant(redis_url: str, prefix: str) -> None:
    counts = redis_counts(redis_url, prefix)
    window = Window("p", "a tenant's name", PER)
    await counts.exchange(counted(range(3), blocked=True, window=window), [window], NOW)
    await counts.close()
    with redis.Redis.from_url(redis_url) as admin:
        keys = list(admin.scan_iter(f"{prefix}*"))
        assert len(keys) == 2
        for key in keys:
            assert b"tenant" not in key
            assert PER * 1000 < admin.pttl(key) < 2 * PER * 1000


async def test_server_that_does_not_answer_is_away(server: Server, prefix: str) -> None:
    counts = redis_counts(server.url, prefix, timeout_seconds=0.2)
    await counts.exchange(counted(range(3)), [WINDOW], NOW)
    with server.frozen(), pytest.raises(CountsAway):
        await counts.exchange([], [WINDOW], NOW)
    server.kill()
    with pytest.raises(CountsAway):
        await counts.exchange([], [WINDOW], NOW)
    await counts.close()


async def test_server_that_is_full_is_away(server: Server, prefix: str) -> None:
    counts = redis_counts(server.url, prefix)
    with server.admin() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
    with pytest.raises(CountsAway, match="OutOfMemory"):
        await counts.exchange(counted(range(3)), [WINDOW], NOW)
    await counts.close()


async def test_key_that_holds_something_else_is_no_answer(redis_url: str, prefix: str) -> None:
    counts = redis_counts(redis_url, prefix)
    await counts.exchange(counted(range(3)), [], NOW)
    with redis.Redis.from_url(redis_url) as admin:
        for key in admin.scan_iter(f"{prefix}*"):
            admin.set(key, "something else")
    with pytest.raises(CountsAway):
        await counts.exchange([], [WINDOW], NOW)
    await counts.close()


# ---------------------------------------------------------------- brakes that share it


POLICY: Policy = replace(policy_of(category(), id="p"), max_block_rate=BlockRate(0.3, PER, 10))


def blocked(brake: Brake, *requests: str) -> BrakeRef | None:
    said = None
    for request in requests:
        said = brake.count(POLICY, "shop", request, blocked=True)
    return said


async def test_workers_that_share_it_brake_together(fleet: FleetCounts) -> None:
    one, other = Brake(fleet), Brake(fleet)
    assert blocked(one, *(f"a{n}" for n in range(6))) is None
    assert blocked(other, *(f"b{n}" for n in range(6))) is None
    await one.exchange()
    await other.exchange()
    assert blocked(other, "b0") == BrakeRef(share=1.0, requests=12, scope="fleet")


async def test_redelivery_to_another_worker_counts_once(fleet: FleetCounts) -> None:
    one, other = Brake(fleet), Brake(fleet)
    for brake in (one, other):
        blocked(brake, *(f"a{n}" for n in range(9)))
        await brake.exchange()
    assert blocked(other, "a0") is None


async def test_server_that_dies_leaves_each_worker_its_own_count_and_gets_it_all_back(
    server: Server, prefix: str
) -> None:
    times = iter(range(int(NOW), int(NOW) + 500))
    counts = [redis_counts(server.url, prefix, timeout_seconds=2.0) for _ in range(2)]
    one, other = (
        Brake(each, breaker_seconds=1.0, clock=lambda: float(next(times))) for each in counts
    )
    blocked(one, *(f"a{n}" for n in range(12)))
    blocked(other, *(f"b{n}" for n in range(6)))
    await one.exchange()
    await other.exchange()
    assert blocked(other, "b0") == BrakeRef(share=1.0, requests=18, scope="fleet")
    server.kill()
    for brake in (one, other):
        for _ in range(3):
            await brake.exchange()
    assert blocked(one, "a12") == BrakeRef(share=1.0, requests=13, scope="worker")
    assert blocked(other, "b6") is None  # of its own it knows of too few
    with server.started_again():
        for brake in (one, other, one):
            await brake.exchange()
        assert blocked(one, "a0") == BrakeRef(share=1.0, requests=20, scope="fleet")
        assert blocked(other, "b0") == BrakeRef(share=1.0, requests=20, scope="fleet")
        for each in counts:
            await each.close()
