from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from worker.handover import Handover

Future = asyncio.Future[object]


def futures(count: int) -> list[Future]:
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


def from_a_thread(tell: Callable[[], None]) -> None:
    """While the event loop looks at nothing."""
    thread = threading.Thread(target=tell)
    thread.start()
    thread.join()


async def test_results_and_errors_reach_their_futures() -> None:
    handover = Handover(asyncio.get_running_loop())
    result, nothing, error = futures(3)

    def tell() -> None:
        handover.tell(result, "a result")
        handover.tell(nothing, None)
        handover.tell(error, ValueError("an error"))

    from_a_thread(tell)
    assert await result == "a result"
    assert await nothing is None
    with pytest.raises(ValueError, match="an error"):
        await error


async def test_what_is_told_before_the_loop_looks_comes_in_one_turn() -> None:
    handover = Handover(asyncio.get_running_loop())
    told = futures(50)
    from_a_thread(lambda: [handover.tell(each, None) for each in told] and None)
    await told[0]
    assert all(each.done() for each in told)


async def test_what_is_told_after_the_loop_has_looked_comes_too() -> None:
    handover = Handover(asyncio.get_running_loop())
    for number in range(3):
        [future] = futures(1)
        from_a_thread(lambda future=future, number=number: handover.tell(future, number))
        assert await future == number


async def test_who_gave_up_disturbs_nobody() -> None:
    handover = Handover(asyncio.get_running_loop())
    gone, also_gone, there = futures(3)
    gone.cancel()
    also_gone.set_result("already")

    def tell() -> None:
        handover.tell(gone, None)
        handover.tell(also_gone, ValueError("too late"))
        handover.tell(there, "still here")

    from_a_thread(tell)
    assert await there == "still here"
    assert gone.cancelled()
    assert await also_gone == "already"


async def test_threads_tell_beside_each_other_and_nothing_is_lost() -> None:
    handover = Handover(asyncio.get_running_loop())
    told = futures(2000)
    threads = [
        threading.Thread(target=lambda part=part: [handover.tell(f, None) for f in told[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(30):
        await asyncio.gather(*told)
    for thread in threads:
        thread.join()
