from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fakes_counts import FakeCounts
from tests.policy_factory import category, policy_of
from tests.rig import metric
from worker.brake import Brake
from worker.policy import BlockRate, Policy
from worker.schema import BrakeRef

PER = 600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def policy(
    id: str = "p", *, share: float = 0.3, min_requests: int = 10, per: float = PER
) -> Policy:
    return replace(policy_of(category(), id=id), max_block_rate=BlockRate(share, per, min_requests))


def ask(
    brake: Brake,
    blocked: int,
    others: int = 0,
    *,
    of: Policy | None = None,
    tenant: str | None = "shop",
    name: str = "r",
) -> BrakeRef | None:
    """Requests that would be blocked, after others; what the last of them is told."""
    said = None
    for number in range(others):
        brake.count(of or policy(), tenant, f"{name}-fine-{number}", blocked=False)
    for number in range(blocked):
        said = brake.count(of or policy(), tenant, f"{name}-bad-{number}", blocked=True)
    return said


# ---------------------------------------------------------------- when it holds


def test_it_holds_when_more_than_the_share_would_be_blocked() -> None:
    brake = Brake(None)
    assert ask(brake, blocked=3, others=7) is None  # 3 of 10 are no more than 0.3
    said = brake.count(policy(), "shop", "one more", blocked=True)
    assert said == BrakeRef(share=0.3636, requests=11, scope="worker")


def test_what_would_not_be_blocked_is_told_nothing() -> None:
    brake = Brake(None)
    assert ask(brake, blocked=20) is not None
    assert brake.count(policy(), "shop", "fine", blocked=False) is None


def test_few_requests_say_nothing() -> None:
    brake = Brake(None)
    assert ask(brake, blocked=9) is None
    assert ask(brake, blocked=10) is not None


def test_policy_without_a_limit_is_never_held_up() -> None:
    brake = Brake(None)
    assert ask(brake, blocked=50, of=policy_of(category())) is None


def test_policies_and_tenants_have_brakes_of_their_own() -> None:
    brake = Brake(None)
    assert ask(brake, blocked=20) is not None
    assert ask(brake, blocked=5, tenant="other") is None
    assert ask(brake, blocked=5, tenant=None) is None
    assert ask(brake, blocked=5, of=policy("q")) is None


def test_request_that_comes_again_counts_once() -> None:
    brake = Brake(None)
    for _ in range(20):
        assert ask(brake, blocked=9) is None


def test_request_that_is_blocked_when_it_comes_again_counts_as_blocked_and_once() -> None:
    brake = Brake(None)
    ask(brake, blocked=5, others=5)
    said = brake.count(policy(), "shop", "r-fine-0", blocked=True)
    assert said == BrakeRef(share=0.6, requests=10, scope="worker")


def test_it_goes_on_holding_while_it_holds() -> None:
    brake = Brake(None)
    ask(brake, blocked=20)
    for number in range(100):
        assert brake.count(policy(), "shop", f"more-{number}", blocked=True) is not None


def test_it_lets_go_when_the_time_is_over() -> None:
    clock = Clock()
    brake = Brake(None, clock=clock)
    assert ask(brake, blocked=20) is not None
    clock.now += PER
    assert ask(brake, blocked=3, others=7, name="later") is None


def test_window_slides() -> None:
    clock = Clock()
    brake = Brake(None, clock=clock)
    ask(brake, blocked=10, name="first")
    clock.now += PER / 2
    ask(brake, blocked=0, others=10, name="second")
    assert brake.count(policy(), "shop", "x", blocked=True) is not None  # 11 of 21
    clock.now += PER / 2
    assert brake.count(policy(), "shop", "y", blocked=True) is None  # 2 of 12


def test_edited_policy_keeps_its_counts_and_has_its_new_share() -> None:
    brake = Brake(None)
    ask(brake, blocked=5, others=5)
    assert brake.count(policy(share=0.6), "shop", "a", blocked=True) is None
    edited = policy(share=0.2)
    said = brake.count(edited, "shop", "b", blocked=True)
    assert said == BrakeRef(share=0.5833, requests=12, scope="worker")


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 200)), max_size=80),
    st.floats(0, 0.9),
    st.integers(1, 20),
)
def test_alone_it_says_what_counting_says(
    asked: list[tuple[int, bool, int]], share: float, least: int
) -> None:
    clock = Clock()
    brake = Brake(None, clock=clock)
    limited = policy(share=share, min_requests=least)
    seen: dict[int, tuple[float, bool]] = {}
    for request, blocked, seconds in asked:
        clock.now += seconds
        seen = {r: (at, bad) for r, (at, bad) in seen.items() if at > clock.now - PER}
        at, bad = seen.get(request, (clock.now, False))
        seen[request] = (at, bad or blocked)
        said = brake.count(limited, "shop", str(request), blocked=blocked)
        expected = sum(bad for _, bad in seen.values()) / len(seen)
        assert (said is not None) == (blocked and len(seen) >= least and expected > share)
        if said is not None:
            assert (said.requests, said.share) == (len(seen), round(expected, 4))


# ---------------------------------------------------------------- the fleet


async def test_workers_count_together() -> None:
    fleet = FakeCounts()
    one, other = Brake(fleet), Brake(fleet)
    ask(one, blocked=6, name="one")
    ask(other, blocked=6, name="other")
    await one.exchange()
    await other.exchange()
    said = other.count(policy(), "shop", "next", blocked=True)
    assert said == BrakeRef(share=1.0, requests=13, scope="fleet")


async def test_what_came_since_the_fleet_answered_counts_too() -> None:
    fleet = FakeCounts()
    brake = Brake(fleet)
    ask(brake, blocked=0, others=8)
    await brake.exchange()
    said = ask(brake, blocked=8, name="since")
    assert said == BrakeRef(share=0.5, requests=16, scope="fleet")
    await brake.exchange()
    said = brake.count(policy(), "shop", "since-bad-7", blocked=True)
    assert said == BrakeRef(share=0.5, requests=16, scope="fleet")


async def test_request_delivered_to_two_workers_counts_once() -> None:
    fleet = FakeCounts()
    one, other = Brake(fleet), Brake(fleet)
    for brake in (one, other, one, other):
        ask(brake, blocked=9)
        await brake.exchange()
    assert other.count(policy(), "shop", "r-bad-0", blocked=True) is None


async def test_without_the_fleet_it_goes_by_its_own_requests_and_tells_all_when_it_is_back() -> (
    None
):
    clock, fleet = Clock(), FakeCounts()
    brake = Brake(fleet, breaker_seconds=2, clock=clock)
    ask(brake, blocked=12)
    await brake.exchange()
    assert metric("brake_local") == 0
    fleet.away = True
    with capture_logs() as lines:
        for _ in range(3):
            await brake.exchange()
    assert [line["event"] for line in lines if "counts" in line["event"]] == ["brake_counts_away"]
    assert metric("brake_local") == 1
    said = brake.count(policy(), "shop", "meanwhile", blocked=True)
    assert said == BrakeRef(share=1.0, requests=13, scope="worker")
    fleet.away = False
    fleet.seen.clear()  # the server was started anew
    await brake.exchange()
    assert fleet.exchanges == 1  # it is left alone for a while
    clock.now += 2
    await brake.exchange()
    assert metric("brake_local") == 0
    said = brake.count(policy(), "shop", "meanwhile", blocked=True)
    assert said == BrakeRef(share=1.0, requests=13, scope="fleet")


async def test_clock_that_is_put_back_keeps_it_from_the_fleet_no_longer() -> None:
    clock, fleet = Clock(), FakeCounts()
    brake = Brake(fleet, breaker_seconds=2, clock=clock)
    ask(brake, blocked=12)
    fleet.away = True
    for _ in range(2):
        await brake.exchange()
    fleet.away = False
    clock.now -= 3600
    await brake.exchange()
    assert metric("brake_local") == 0


async def test_one_exchange_that_fails_is_no_outage_and_loses_nothing() -> None:
    fleet = FakeCounts()
    one, other = Brake(fleet), Brake(fleet)
    ask(other, blocked=5, name="other")
    await other.exchange()
    ask(one, blocked=6, name="one")
    await one.exchange()
    ask(one, blocked=6, name="more")
    fleet.away = True
    await one.exchange()
    assert one.count(policy(), "shop", "x", blocked=True) == BrakeRef(
        share=1.0, requests=18, scope="fleet"
    )
    fleet.away = False
    await one.exchange()
    await other.exchange()
    assert other.count(policy(), "shop", "other-bad-0", blocked=True) == BrakeRef(
        share=1.0, requests=18, scope="fleet"
    )


async def test_each_of_many_tenants_has_its_turn() -> None:
    fleet = FakeCounts()
    brake = Brake(fleet)
    tenants = [f"tenant-{number}" for number in range(150)]
    for tenant in tenants:
        brake.count(policy(), tenant, "r", blocked=False)
    for _ in range(3):
        await brake.exchange()
    scopes = {ask(brake, blocked=20, tenant=tenant).scope for tenant in tenants}  # type: ignore[union-attr]
    assert scopes == {"fleet"}


async def test_requests_counted_during_an_exchange_are_in_the_next_one() -> None:
    gate = asyncio.Event()

    class Slow(FakeCounts):
        async def exchange(self, added, asked, now):  # type: ignore[no-untyped-def]
            answer = await super().exchange(added, asked, now)
            await gate.wait()
            return answer

    fleet = Slow()
    brake = Brake(fleet)
    ask(brake, blocked=6, name="before")
    exchanging = asyncio.create_task(brake.exchange())
    await asyncio.sleep(0)
    ask(brake, blocked=6, name="meanwhile")
    gate.set()
    await exchanging
    said = brake.count(policy(), "shop", "before-bad-0", blocked=True)
    assert said == BrakeRef(share=1.0, requests=12, scope="fleet")
    await brake.exchange()
    assert [len(seen) for seen in fleet.seen.values()] == [12]


async def test_it_keeps_up_by_itself_until_it_is_cancelled() -> None:
    fleet = FakeCounts()
    brake = Brake(fleet, interval_seconds=0.001)
    ask(brake, blocked=1)
    running = asyncio.create_task(brake.run())
    async with asyncio.timeout(30):
        while fleet.exchanges < 3:
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_nobody_is_asked_where_no_policy_has_a_brake() -> None:
    fleet = FakeCounts()
    brake = Brake(fleet)
    ask(brake, blocked=5, of=policy_of(category()))
    await brake.exchange()
    assert fleet.exchanges == 0
    assert metric("brake_local") == 0


# ---------------------------------------------------------------- what is told


async def test_log_says_once_when_it_engages_and_once_when_it_lets_go() -> None:
    clock = Clock()
    brake = Brake(None, clock=clock)
    limited = policy("told")
    with capture_logs() as lines:
        ask(brake, blocked=20, of=limited)
        ask(brake, blocked=20, of=limited, tenant="other")
        await brake.exchange()
        await brake.exchange()
        assert metric("brakes_engaged", policy="told") == 2
        assert metric("brake_local") == 1
        clock.now += PER
        await brake.exchange()
        await brake.exchange()
    assert metric("brakes_engaged", policy="told") == 0
    assert metric("brake_local") == 0
    told = [(line["event"], line["tenant"]) for line in lines]
    assert told == [
        ("brake_engaged", "shop"),
        ("brake_engaged", "other"),
        ("brake_released", "shop"),
        ("brake_released", "other"),
    ]
    assert lines[0]["share"] == 1.0
    assert (lines[0]["allowed"], lines[0]["requests"]) == (0.3, 20)


# ---------------------------------------------------------------- what it holds


def test_memory_is_bounded_and_the_quietest_tenants_go_first() -> None:
    brake = Brake(None, held=100)
    ask(brake, blocked=40, tenant="quiet")
    for number in range(10):
        assert ask(brake, blocked=12, tenant=f"busy-{number % 2}", name=str(number)) is not None
    assert ask(brake, blocked=1, tenant="quiet", name="again") is None
    said = ask(brake, blocked=150, tenant="busiest")
    assert said is not None
    assert said.requests == 100


async def test_tenants_are_forgotten_when_their_time_is_over() -> None:
    clock, fleet = Clock(), FakeCounts()
    brake = Brake(fleet, clock=clock)
    for number in range(50):
        brake.count(policy(), f"tenant-{number}", "r", blocked=True)
    clock.now += PER
    await brake.exchange()
    exchanges = fleet.exchanges
    await brake.exchange()
    assert fleet.exchanges == exchanges
