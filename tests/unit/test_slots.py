from __future__ import annotations

import asyncio

import pytest

from worker.slots import PrioritySlots


class Crowd:
    """Holds places until told to go; ``admitted`` is who got one, in order."""

    def __init__(self, slots: PrioritySlots) -> None:
        self.slots = slots
        self.admitted: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def comes(self, name: str, priority: int) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, priority))
        await settle()

    async def goes(self, name: str) -> None:
        self.leave[name].set()
        await settle()

    async def _stay(self, name: str, priority: int) -> None:
        async with self.slots.hold(priority):
            self.admitted.append(name)
            await self.leave[name].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_live_work_is_admitted_before_a_backfill_that_came_earlier() -> None:
    crowd = Crowd(PrioritySlots(1))
    await crowd.comes("holder", 0)
    for name, priority in [("backfill", 2), ("retry", 1), ("live", 0), ("live later", 0)]:
        await crowd.comes(name, priority)
    for name in ("holder", "live", "live later", "retry", "backfill"):
        await crowd.goes(name)
    assert crowd.admitted == ["holder", "live", "live later", "retry", "backfill"]


async def test_no_more_hold_a_place_than_there_are() -> None:
    crowd = Crowd(PrioritySlots(2))
    for name in "abc":
        await crowd.comes(name, 0)
    assert crowd.admitted == ["a", "b"]
    await crowd.goes("a")
    assert crowd.admitted == ["a", "b", "c"]


async def test_place_of_one_that_fails_is_free_again() -> None:
    slots = PrioritySlots(1)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold():
            raise ZeroDivisionError
    crowd = Crowd(slots)
    await crowd.comes("next", 2)
    assert crowd.admitted == ["next"]


async def test_one_that_gives_up_waiting_takes_no_place() -> None:
    crowd = Crowd(PrioritySlots(1))
    for name in "abc":
        await crowd.comes(name, 0)
    crowd.tasks["b"].cancel()
    await crowd.goes("a")
    assert crowd.admitted == ["a", "c"]


async def test_place_given_to_one_that_gives_up_at_that_moment_goes_to_the_next() -> None:
    crowd = Crowd(PrioritySlots(1))
    for name in "abc":
        await crowd.comes(name, 0)
    crowd.leave["a"].set()
    while not crowd.tasks["a"].done():  # "b" has its place now, and has not run yet
        await asyncio.sleep(0)
    crowd.tasks["b"].cancel()
    await settle()
    assert crowd.tasks["b"].cancelled()
    assert crowd.admitted[-1] == "c"


async def test_place_that_is_given_back_as_the_next_one_gives_up_goes_to_the_one_after() -> None:
    crowd = Crowd(PrioritySlots(1))
    for name in "abc":
        await crowd.comes(name, 0)
    crowd.leave["a"].set()
    crowd.tasks["b"].cancel()  # it will know only after "a" has left
    await settle()
    assert crowd.tasks["a"].done()
    assert crowd.admitted == ["a", "c"]


def test_slots_that_would_admit_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="a capacity of 0 admits nobody"):
        PrioritySlots(0)
