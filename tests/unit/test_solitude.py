from __future__ import annotations

import asyncio

from worker.solitude import Solitude


async def test_many_share_and_one_who_wants_to_be_alone_waits_for_all_of_them() -> None:
    solitude, told = Solitude(), []
    leave = asyncio.Event()

    async def sharer() -> None:
        async with solitude.shared():
            told.append("shared")
            await leave.wait()

    async def loner() -> None:
        async with solitude.alone():
            told.append("alone")

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(sharer())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        group.create_task(loner())
        await asyncio.sleep(0)
        late = group.create_task(sharer())
        for _ in range(5):
            await asyncio.sleep(0)
        assert told == ["shared", "shared"]
        assert not late.done()
        leave.set()
    assert told == ["shared", "shared", "alone", "shared"]


async def test_one_who_gives_up_waiting_keeps_nobody_out() -> None:
    solitude = Solitude()
    async with solitude.shared():
        waiting = asyncio.create_task(solitude.alone().__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(30), solitude.shared(), solitude.shared():
        pass
