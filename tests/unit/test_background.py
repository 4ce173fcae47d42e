from __future__ import annotations

import asyncio
import gc
import sys
import threading

import pytest

from worker.background import in_background


def settings() -> tuple[float, bool]:
    return sys.getswitchinterval(), gc.isenabled()


async def test_work_in_the_background_takes_short_turns_and_leaves_the_process_as_it_was() -> None:
    before = settings()
    interval, collecting = await in_background(settings)
    assert interval < before[0]
    assert not collecting
    assert settings() == before


async def test_what_the_work_raises_is_raised_and_the_process_is_left_as_it_was() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError):
        await in_background(divmod, 1, 0)
    assert settings() == before


async def test_work_that_overlaps_waits_and_the_process_is_left_as_it_was() -> None:
    before = settings()
    running, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return number

    found = await asyncio.gather(*(in_background(work, number) for number in range(20)))

    assert found == list(range(20))
    assert most == 1
    assert settings() == before


async def test_a_process_that_collects_no_garbage_of_its_own_will_not_begin_to() -> None:
    gc.disable()
    try:
        await in_background(settings)
        assert not gc.isenabled()
    finally:
        gc.enable()
