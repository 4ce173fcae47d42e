from __future__ import annotations

import asyncio

import pytest

from worker.flights import Flights


async def test_concurrent_askers_share_one_task() -> None:
    started = 0
    gate = asyncio.Event()

    async def work() -> int:
        nonlocal started
        started += 1
        await gate.wait()
        return 42

    flights: Flights[str, int] = Flights()
    askers = [asyncio.create_task(flights.join("key", work)) for _ in range(3)]
    while not started:
        await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*askers) == [(42, False), (42, True), (42, True)]
    assert started == 1


async def test_nothing_is_remembered_after_landing() -> None:
    flights: Flights[str, int] = Flights()
    results = iter((1, 2))

    async def work() -> int:
        return next(results)

    assert await flights.join("key", work) == (1, False)
    assert await flights.join("key", work) == (2, False)


async def test_asker_that_gives_up_takes_nothing_from_the_others() -> None:
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        return 42

    flights: Flights[str, int] = Flights()
    first, second = (asyncio.create_task(flights.join("key", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == (42, True)
    assert first.cancelled()


async def test_task_ends_when_its_last_asker_gives_up() -> None:
    ended = asyncio.Event()

    async def work() -> int:
        try:
            return await asyncio.Event().wait()
        finally:
            ended.set()

    flights: Flights[str, int] = Flights()
    askers = [asyncio.create_task(flights.join("key", work)) for _ in range(2)]
    await asyncio.sleep(0)
    askers[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not ended.is_set()
    askers[1].cancel()
    async with asyncio.timeout(10):
        await ended.wait()


async def test_asker_that_comes_while_a_task_is_being_cancelled_gets_one_of_its_own() -> None:
    gate = asyncio.Event()

    async def slow_to_end() -> int:
        try:
            return await asyncio.Event().wait()
        finally:
            await gate.wait()

    async def work() -> int:
        return 42

    flights: Flights[str, int] = Flights()
    first = asyncio.create_task(flights.join("key", slow_to_end))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await flights.join("key", work) == (42, False)
    second = asyncio.create_task(flights.join("key", gate.wait))
    await asyncio.sleep(0)
    gate.set()  # the first task ends only now, and takes nothing of the second's with it
    assert await flights.join("key", work) == (True, True)
    await second


async def test_failure_reaches_every_asker() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    flights: Flights[str, int] = Flights()
    answers = await asyncio.gather(
        *(flights.join("key", work) for _ in range(2)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2


async def test_closing_cancels_what_still_runs() -> None:
    flights: Flights[str, None] = Flights()
    asker = asyncio.create_task(flights.join("key", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await flights.close()
    with pytest.raises(asyncio.CancelledError):
        await asker
