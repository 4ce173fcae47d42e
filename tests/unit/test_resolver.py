"""Look-ups of names, on threads of their own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from worker.resolver import SystemResolver


class NameServer:
    """Answers with the name itself, and not before it is let."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers = threading.Event()
        self._lock = threading.Lock()

    def look_up(self, name: str) -> Sequence[str]:
        with self._lock:
            self.asked[name] += 1
        self.answers.wait()
        return [name]

    async def until_asked(self, times: int) -> None:
        while self.asked.total() < times:
            await asyncio.sleep(0.001)


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    server = NameServer()
    yield server
    server.answers.set()  # for the threads that still wait


async def test_concurrent_look_ups_of_a_name_are_one(server: NameServer) -> None:
    resolve = SystemResolver(look_up=server.look_up)
    asking = [asyncio.create_task(resolve(name)) for name in "aabbab"]
    await server.until_asked(2)
    server.answers.set()
    assert await asyncio.gather(*asking) == [[name] for name in "aabbab"]
    assert server.asked == {"a": 1, "b": 1}


async def test_nothing_is_kept_of_an_answer(server: NameServer) -> None:
    server.answers.set()
    resolve = SystemResolver(look_up=server.look_up)
    await resolve("a")
    await resolve("a")
    assert server.asked == {"a": 2}


async def test_no_more_than_the_given_threads_look_up(server: NameServer) -> None:
    resolve = SystemResolver(threads=2, look_up=server.look_up)
    asking = [asyncio.create_task(resolve(str(number))) for number in range(8)]
    await server.until_asked(2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.asked.total() == 2
    server.answers.set()
    await asyncio.gather(*asking)
    assert server.asked.total() == 8


async def test_who_gives_up_waiting_for_a_thread_is_not_looked_up(server: NameServer) -> None:
    resolve = SystemResolver(threads=1, look_up=server.look_up)
    first = asyncio.create_task(resolve("slow"))
    await server.until_asked(1)
    for number in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await resolve(f"impatient-{number}")
    server.answers.set()
    assert await first == ["slow"]
    assert await resolve("last") == ["last"]
    assert server.asked == {"slow": 1, "last": 1}


async def test_a_look_up_that_nobody_waits_for_keeps_its_thread_until_it_ends(
    server: NameServer,
) -> None:
    unexpected: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: unexpected.append(what))
    resolve = SystemResolver(threads=1, look_up=server.look_up)
    slow = asyncio.create_task(resolve("slow"))
    await server.until_asked(1)
    slow.cancel()
    other = asyncio.create_task(resolve("other"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.asked == {"slow": 1}
    server.answers.set()
    assert await other == ["other"]
    assert unexpected == []


async def test_a_failure_reaches_all_who_asked() -> None:
    def fail(name: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    resolve = SystemResolver(look_up=fail)
    failures = await asyncio.gather(resolve("a"), resolve("a"), return_exceptions=True)
    assert [type(failure) for failure in failures] == [socket.gaierror] * 2


def test_a_look_up_without_answer_does_not_outlive_its_loop(
    recwarn: pytest.WarningsRecorder,
) -> None:
    server = NameServer()
    resolve = SystemResolver(look_up=server.look_up)

    async def give_up() -> None:
        task = asyncio.create_task(resolve("slow"))
        await server.until_asked(1)
        task.cancel()
        await resolve.close()

    try:
        asyncio.run(give_up())
        (thread,) = (t for t in threading.enumerate() if t.name == "resolve-slow")
        assert thread.daemon  # the process may end before it
    finally:
        server.answers.set()
    thread.join()
    assert not recwarn.list


async def test_the_system_knows_its_own_name() -> None:
    assert set(await SystemResolver()("localhost")) <= {"127.0.0.1", "::1"}
