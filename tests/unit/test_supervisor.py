"""Processes that are kept: small ones that serve probes as a worker does, and end as they are
told."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from worker.endpoints import Endpoints
from worker.supervised import all_live, metrics_of, one_ready
from worker.supervisor import Member, Patience, Supervisor

#: Serves on a socket, appends a line to a log, and then does what the test says.
CHILD = """
import os, signal, sys
from pathlib import Path
from worker import telemetry
from worker.endpoints import Endpoints, Health

# blocked and waited for: a handler may be called after the last look at whether to sleep
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
number, socket, log = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with log.open("a") as lines:
    lines.write(f"{number}\\n")
lives = log.read_text().splitlines().count(str(number))


def serve(ready=True, live=True):
    telemetry.FETCH_ATTEMPTS.inc(10 + number)
    telemetry.BUILD_INFO.info({"version": "1"})
    Endpoints(
        f"unix:{socket}", 0, live=lambda: Health(live, "polls"), ready=lambda: Health(ready, "so")
    )


def wait_to_be_told():
    signal.sigwait([signal.SIGTERM])


"""
QUICK = Patience(first_seconds=0.01, longest_seconds=0.05)
PATIENCE_SECONDS = 60.0


class Lab:
    """A supervisor of ``processes`` children that do ``what``."""

    def __init__(
        self, folder: Path, what: str, processes: int = 2, patience: Patience = QUICK
    ) -> None:
        self.log = folder / "log"
        code = CHILD + textwrap.dedent(what)
        sockets = [folder / f"{number}.sock" for number in range(processes)]
        self.supervisor = Supervisor(
            [
                Member(
                    [sys.executable, "-c", code, str(number), str(socket), str(self.log)],
                    os.environ,
                    socket,
                )
                for number, socket in enumerate(sockets)
            ],
            patience,
        )
        self.places = self.supervisor.places

    def lives(self, number: int) -> int:
        """How often it was started."""
        return self.log.read_text().splitlines().count(str(number)) if self.log.exists() else 0

    async def until(self, condition: Callable[[], object]) -> None:
        """Called on a thread, for it may ask the processes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.02)

    def all_ready(self) -> bool:
        return f"{len(self.places)} of {len(self.places)}" in one_ready(self.places).reason


async def ended(running: asyncio.Task[int]) -> int:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await running


@contextmanager
def serving(lab: Lab) -> Iterator[str]:
    endpoints = Endpoints(
        "127.0.0.1",
        0,
        live=lambda: all_live(lab.places),
        ready=lambda: one_ready(lab.places),
        registry=metrics_of(lab.places),
    )
    try:
        yield f"http://{endpoints.address}"
    finally:
        endpoints.close()


# ---------------------------------------------------------------- deaths


async def test_process_that_dies_is_started_again(tmp_path: Path) -> None:
    lab = Lab(
        tmp_path,
        "serve()\nif number == 1 and lives < 3: os.kill(os.getpid(), 9)\nwait_to_be_told()",
    )
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lambda: lab.lives(1) == 3 and lab.all_ready())
    assert lab.lives(0) == 1
    lab.supervisor.stop()
    assert await ended(running) == 0


def test_one_that_never_died_is_told_of_with_no_restarts(tmp_path: Path) -> None:
    with serving(Lab(tmp_path, "", processes=2)) as address:
        text = httpx.get(f"{address}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {each.labels["process"] for each in families["imagewarden_process_restarts"].samples}
    assert {"0", "1"} <= told


def test_pause_doubles_up_to_the_longest() -> None:
    pauses = [Patience().pause(deaths) for deaths in (1, 2, 3, 5, 6, 7, 5000)]
    assert pauses == [1, 2, 4, 16, 30, 30, 30]


async def test_one_that_was_ready_long_enough_begins_with_the_first_pause(tmp_path: Path) -> None:
    patience = Patience(first_seconds=0.01, longest_seconds=999, forgiven_seconds=0)
    what = """
    serve()
    while not Path(f"{socket}{lives}").exists():
        if signal.sigtimedwait([signal.SIGTERM], 0.01):
            sys.exit(0)
    sys.exit(70)
    """
    lab = Lab(tmp_path, what, 1, patience)
    running = asyncio.create_task(lab.supervisor.run())

    def ready_in(life: int) -> bool:
        return lab.lives(0) == life and lab.places[0].ready_at is not None

    # more often than one may fail in a row
    for life in range(1, patience.failures + 2):
        await lab.until(partial(ready_in, life))
        (tmp_path / f"0.sock{life}").touch()
    await lab.until(lambda: lab.lives(0) == patience.failures + 2)
    lab.supervisor.stop()
    assert await ended(running) == 0


async def test_misconfiguration_is_found_by_the_first_process_alone(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "sys.exit(2)", 3)
    assert await ended(asyncio.create_task(lab.supervisor.run())) == 2
    assert [lab.lives(number) for number in range(3)] == [1, 0, 0]


async def test_misconfiguration_that_comes_later_does_not_end_those_that_serve(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, "if number == 1 and lives < 3: sys.exit(2)\nserve()\nwait_to_be_told()")
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lambda: lab.lives(1) == 3)
    lab.supervisor.stop()
    assert await ended(running) == 0
    assert lab.lives(0) == 1


async def test_process_that_fails_again_and_again_ends_them_all(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "serve()\nif number == 1: sys.exit(70)\nwait_to_be_told()")
    assert await ended(asyncio.create_task(lab.supervisor.run())) == 70
    assert [lab.lives(number) for number in range(2)] == [1, QUICK.failures]


# ---------------------------------------------------------------- stopping


async def test_exit_code_is_the_highest(tmp_path: Path) -> None:
    what = """
    serve()
    wait_to_be_told()
    os._exit(3 * number)
    """
    lab = Lab(tmp_path, what, 3)
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lab.all_ready)
    lab.supervisor.stop()
    assert await ended(running) == 6


async def test_stopping_waits_for_no_pause(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "sys.exit(1)", 2, Patience(first_seconds=999))
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lambda: "starts again 30 s later" in (lab.places[0].absent or ""))
    lab.supervisor.stop()
    assert await ended(running) == 0
    assert lab.lives(1) == 0


async def test_processes_do_not_get_the_terminals_signals(tmp_path: Path) -> None:
    lab = Lab(
        tmp_path,
        "Path(f'{log}.group').write_text(str(os.getpgid(0)))\nserve()\nwait_to_be_told()",
        1,
    )
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lab.all_ready)
    assert int((tmp_path / "log.group").read_text()) != os.getpgid(0)
    lab.supervisor.stop()
    assert await ended(running) == 0


# ---------------------------------------------------------------- asked as one


async def test_metrics_of_all_are_there_and_told_apart(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "serve()\nwait_to_be_told()")
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lab.all_ready)
    with serving(lab) as address:
        text = (await asyncio.to_thread(httpx.get, f"{address}/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    fetched = families["imagewarden_fetch_attempts"]
    assert fetched.type == "counter"
    assert {(each.labels["process"], each.value) for each in fetched.samples} == {
        ("0", 10),
        ("1", 11),
    }
    built = families["imagewarden_build_info"]
    assert [each.labels for each in built.samples] == [
        {"process": number, "version": "1"} for number in ("0", "1")
    ]
    assert [each.value for each in families["imagewarden_processes"].samples] == [2]
    assert text.count("# TYPE imagewarden_fetch_attempts_total ") == 1
    lab.supervisor.stop()
    assert await ended(running) == 0


async def test_one_that_is_ready_makes_all_ready_and_the_others_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "serve(ready=number == 0)\nwait_to_be_told()")
    running = asyncio.create_task(lab.supervisor.run())
    told = "1 of 2 processes are ready; process 1: so"
    await lab.until(lambda: one_ready(lab.places).reason == told)
    with serving(lab) as address:
        answer = await asyncio.to_thread(httpx.get, f"{address}/readyz")
    assert (answer.status_code, answer.text) == (200, told + "\n")
    lab.supervisor.stop()
    assert await ended(running) == 0
    assert not one_ready(lab.places).well


async def test_one_that_is_stuck_makes_all_of_them_not_live(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "serve(live=number == 0)\nwait_to_be_told()")
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lab.all_ready)
    with serving(lab) as address:
        answer = await asyncio.to_thread(httpx.get, f"{address}/livez")
    assert (answer.status_code, answer.text) == (
        503,
        "1 of 2 processes are live; process 1: polls\n",
    )
    lab.supervisor.stop()
    assert await ended(running) == 0


async def test_one_that_died_is_named_and_left_to_its_restart(tmp_path: Path) -> None:
    what = "serve()\nif number == 1: sys.exit(1)\nwait_to_be_told()"
    lab = Lab(tmp_path, what, 2, Patience(first_seconds=999))
    running = asyncio.create_task(lab.supervisor.run())
    await lab.until(lambda: "starts again" in (lab.places[1].absent or ""))
    health = await asyncio.to_thread(all_live, lab.places)
    assert health.well
    assert health.reason.endswith("process 1: ended with 1, and starts again 30 s later")
    lab.supervisor.stop()
    assert await ended(running) == 0
