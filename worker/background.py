"""Long work in Python beside an event loop that has images to judge.

A thread alone is not enough. Whoever computes in Python keeps the interpreter's lock for 5 ms at a
time while others wait for it, and a verdict takes the lock several times. And what is built
meanwhile sets off collections of garbage, which stop every thread for as long as it takes to walk
all that the process holds.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_SWITCH_SECONDS: Final = 0.0001  # a switch costs a tenth of it at most
_one_at_a_time = threading.Lock()  # what is changed meanwhile is the process's


async def in_background(
    call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """What ``call`` returns or raises, from a thread that gives way to all others. For work of
    seconds, not minutes: garbage waits for it."""
    return await asyncio.to_thread(_giving_way, partial(call, *args, **kwargs))


def spare_what_is_loaded() -> None:
    """Collections of garbage need not walk what the process holds by now, such as its libraries:
    it will hold it to its end."""
    gc.collect()
    gc.freeze()


def _giving_way(call: Callable[[], Result]) -> Result:
    with _one_at_a_time, _short_turns(), _no_collections():
        return call()


@contextmanager
def _short_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _no_collections() -> Iterator[None]:
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
