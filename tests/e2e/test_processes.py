"""Several workers under one supervisor are one service: asked, stopped and killed as one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.e2e.scene import (
    KAFKA,
    Ledger,
    ended,
    eventually,
    gallery,
    logged,
    metric,
    probe,
    requests_of,
    starting_fake_worker,
    terminated,
)
from worker.demo.stage import Exchange, Stage, Worker

FAKE_FLEET = (sys.executable, "-m", "tests.e2e.fake_fleet")
REQUESTS = 60

on_apache_kafka = pytest.mark.skipif(
    KAFKA is None,
    reason="killed members can wedge the embedded broker's group; `make test-kafka` runs it",
)


@contextmanager
def fleet(on: Stage, **settings: str) -> Iterator[Worker]:
    """Two processes, one of them ready."""
    with starting_fake_worker(on, command=FAKE_FLEET, **settings) as processes:
        processes.wait_until_ready()
        yield processes


def both_ready(processes: Worker) -> bool:
    return probe(processes, "readyz")[1] == "2 of 2 processes are ready"


async def test_processes_share_the_work_and_are_asked_as_one(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS)
    requests = requests_of(on, on.images.replies)
    with fleet(on) as processes:
        await eventually(lambda: both_ready(processes), "both are ready")
        async with Exchange(on) as exchange:
            ledger = Ledger(requests)
            await exchange.publish(requests)
            await ledger.fill(exchange)
        counted = "imagewarden_verdicts_total"
        by_process = [metric(processes, counted, process=number) for number in ("0", "1")]
        assert sum(by_process) == metric(processes, counted) == REQUESTS
        assert metric(processes, "imagewarden_processes") == 2
        assert probe(processes, "livez") == (200, "2 of 2 processes are live")
        assert await terminated(processes) == 0
    workers = {verdict.worker for given in ledger.verdicts.values() for verdict in given}
    named = {str(told["worker"]) for told in processes.lines("ready")}
    assert workers <= named
    assert sorted(name[-2:] for name in named) == ["-0", "-1"]


async def test_processes_told_to_stop_answer_what_they_took(on: Stage) -> None:
    on.images.replies |= gallery(8, delay_seconds=0.5)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with fleet(on) as processes:
            await eventually(lambda: both_ready(processes), "both are ready")
            await exchange.publish(requests)
            await eventually(lambda: len(on.images.hits) == 8, "all are in flight")
            assert await terminated(processes) == 0
            assert len(list(processes.lines("stopped"))) == 2
        await ledger.fill(exchange)


async def test_wrong_policy_is_told_once_and_ends_them_all(on: Stage) -> None:
    on.policy.write_text("version: 1\n")
    with starting_fake_worker(on, command=FAKE_FLEET) as processes:
        assert await ended(processes) == 2
    sentences = [line for line in processes.log.read_text().splitlines() if line[:1] != "{"]
    assert sum(line.startswith("imagewarden: ") for line in sentences) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_no_process_outlives_a_supervisor_that_is_killed(on: Stage) -> None:
    with fleet(on) as processes:
        await eventually(lambda: both_ready(processes), "both are ready")
        children = psutil.Process(processes.process.pid).children(recursive=True)
        assert len(children) >= 4  # a worker and a decoder each
        processes.process.kill()
        await ended(processes)
        await eventually(
            lambda: not any(child.is_running() for child in children), "its children end"
        )


@on_apache_kafka
async def test_process_that_is_killed_is_replaced_and_every_request_answered(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS, delay_seconds=0.2)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with fleet(on, WORK__IN_FLIGHT="20", WORK__IMAGES="8") as processes:
            await eventually(lambda: both_ready(processes), "both are ready")
            await exchange.publish(requests)
            await ledger.fill(exchange, count=REQUESTS // 6)
            [victim, _] = psutil.Process(processes.process.pid).children()
            victim.send_signal(signal.SIGKILL)
            await ledger.fill(exchange)
            await eventually(lambda: both_ready(processes), "it is replaced")
            assert logged(processes, "process_died")
            assert metric(processes, "imagewarden_process_restarts_total") == 1
            assert await terminated(processes) == 0
