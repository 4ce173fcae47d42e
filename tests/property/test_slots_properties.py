"""Places are never overbooked or lost, and are given by priority, then by arrival."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from worker.slots import PrioritySlots

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 2)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("pause"), st.integers(1, 3)),
    ),
    max_size=40,
)


class Visit:
    def __init__(self, slots: PrioritySlots, priority: int) -> None:
        self.priority = priority
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(slots))

    async def _stay(self, slots: PrioritySlots) -> None:
        async with slots.hold(self.priority):
            self.inside = True
            try:
                await self.leave.wait()
            finally:
                self.inside = False


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@given(capacity=st.integers(1, 4), steps=STEPS)
async def test_no_place_is_overbooked_or_lost_whoever_comes_leaves_or_gives_up(
    capacity: int, steps: list[tuple[str, int]]
) -> None:
    slots = PrioritySlots(capacity)
    visits: list[Visit] = []

    def here() -> list[Visit]:
        return [visit for visit in visits if not visit.task.done()]

    for step, number in steps:
        if step == "come":
            visits.append(Visit(slots, number))
        elif step == "pause":
            for _ in range(number):
                await asyncio.sleep(0)
        elif here():
            visit = here()[number % len(here())]
            visit.leave.set() if step == "leave" else visit.task.cancel()
        assert sum(visit.inside for visit in visits) <= capacity
    await settle()
    assert sum(visit.inside for visit in here()) == min(capacity, len(here()))
    for visit in here():
        visit.leave.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*(visit.task for visit in visits), return_exceptions=True)
        for _ in range(capacity):  # all of them are free again
            await slots.hold().__aenter__()


@given(priorities=st.lists(st.integers(0, 2), max_size=12), capacity=st.integers(1, 3))
async def test_who_waits_is_admitted_by_priority_and_then_by_arrival(
    priorities: list[int], capacity: int
) -> None:
    slots = PrioritySlots(capacity)
    holders = [Visit(slots, 0) for _ in range(capacity)]
    await settle()
    admitted: list[tuple[int, int]] = []

    async def visit(arrival: int, priority: int) -> None:
        async with slots.hold(priority):
            admitted.append((priority, arrival))

    waiting = [asyncio.create_task(visit(*each)) for each in enumerate(priorities)]
    await settle()
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*waiting, *(holder.task for holder in holders))
    assert admitted == sorted(admitted)
