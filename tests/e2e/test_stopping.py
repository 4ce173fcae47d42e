"""However a worker ends, every request gets its verdict, from it or from the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from tests.e2e.scene import (
    PATIENCE_SECONDS,
    Ledger,
    all_verdicts,
    committed_records,
    ended,
    eventually,
    fake_worker,
    gallery,
    logged,
    metric,
    picture,
    requests_of,
    terminated,
)
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, Worker

REQUESTS = 120


def slow_worker(on: Stage) -> AbstractContextManager[Worker]:
    """Many requests in flight at any time, and few answered at once."""
    return fake_worker(on, WORK__IN_FLIGHT="40", WORK__IMAGES="8")


async def test_a_worker_told_to_stop_answers_what_it_took_and_the_next_goes_on(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS, delay_seconds=0.2)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with slow_worker(on) as worker:
            await exchange.publish(requests)
            await ledger.fill(exchange, count=REQUESTS // 6)
            assert metric(worker, "imagewarden_in_flight_requests") > 0
            assert await terminated(worker) == 0
        answered = len(await all_verdicts(on))
        assert len(ledger.verdicts) <= answered < REQUESTS
        assert committed_records(on) == answered

        with slow_worker(on) as next_worker:
            await ledger.fill(exchange)
            assert await terminated(next_worker) == 0
    # All was committed, so nothing came twice
    assert {name: len(given) for name, given in ledger.verdicts.items()} == dict.fromkeys(
        requests, 1
    )
    assert committed_records(on) == REQUESTS


async def test_a_worker_that_is_killed_loses_nothing(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS, delay_seconds=0.2)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with slow_worker(on) as worker:
            await exchange.publish(requests)
            await ledger.fill(exchange, count=REQUESTS // 6)
            children = psutil.Process(worker.process.pid).children(recursive=True)
            worker.process.kill()
            await ended(worker)
            await eventually(
                lambda: not any(child.is_running() for child in children), "its decoders end"
            )
        with slow_worker(on) as replacement:
            await ledger.fill(exchange)
            assert await terminated(replacement) == 0
    # Repeats too, of what was answered and not yet committed
    everything = Ledger(requests)
    everything.add(await all_verdicts(on))
    assert everything.verdicts.keys() == requests.keys()
    for verdicts in everything.verdicts.values():
        assert len({verdict.verdict_id for verdict in verdicts}) == 1
        assert len({(verdict.decision, verdict.action) for verdict in verdicts}) == 1
        assert len({verdict.categories for verdict in verdicts}) == 1
    assert committed_records(on) == REQUESTS


async def stuck(on: Stage, worker: Worker, exchange: Exchange) -> None:
    """Until a request is in flight that will not be answered soon."""
    on.images.replies["/stuck.jpg"] = Reply(picture("red"), delay_seconds=50)
    await exchange.publish(requests_of(on, ["/stuck.jpg"]))
    await eventually(lambda: on.images.hits["/stuck.jpg"], "the image is asked for")


async def test_a_second_signal_ends_it_at_once(on: Stage) -> None:
    async with Exchange(on) as exchange:
        with fake_worker(on, WORK__DRAIN_SECONDS="100", FETCH__TOTAL_TIMEOUT_SECONDS="100") as one:
            await stuck(on, one, exchange)
            one.process.terminate()
            await eventually(lambda: logged(one, "stopping"), "the first signal is seen")
            assert one.process.poll() is None
            assert await terminated(one) == 128 + signal.SIGTERM
            assert not logged(one, "stopped")


async def test_what_does_not_finish_before_the_drain_deadline_is_left_to_the_next(
    on: Stage,
) -> None:
    async with Exchange(on) as exchange:
        with fake_worker(on, WORK__DRAIN_SECONDS="0.2", FETCH__TOTAL_TIMEOUT_SECONDS="100") as one:
            await stuck(on, one, exchange)
            assert await terminated(one) == 0
            [warning] = one.lines("drain deadline passed; these requests will be read again")
            assert warning["unfinished"] == 1
        assert await all_verdicts(on) == []
        on.images.replies["/stuck.jpg"] = Reply(picture("red"))
        ledger = Ledger(["/stuck.jpg"])
        with fake_worker(on):
            await ledger.fill(exchange)
    [verdict] = ledger.verdicts["/stuck.jpg"]
    assert verdict.decision == "block"


PARENT = """
import sys
from pathlib import Path
from worker.demo.image_server import ImageServer
from worker.demo.stage import Stage, starting_worker
folder = Path(sys.argv[1])
on = Stage("broker", "redis", ImageServer({}), folder / "policy.yaml", folder)
with starting_worker(on, command=["sleep", "100"]) as worker:
    print(worker.process.pid, flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([worker], timeout=PATIENCE_SECONDS)
    assert not worker.is_running()
