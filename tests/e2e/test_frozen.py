"""A worker that stands still for longer than its session loses its partitions, and no request."""

from __future__ import annotations

import signal

from tests.e2e.scene import (
    Ledger,
    all_verdicts,
    committed_records,
    eventually,
    fake_worker,
    gallery,
    requests_of,
    terminated,
)
from worker.demo.stage import Exchange, Stage

REQUESTS = 60


async def test_what_a_frozen_worker_held_is_read_again_and_it_commits_nothing_late(
    on: Stage,
) -> None:
    on.images.replies |= gallery(REQUESTS, delay_seconds=0.2)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with fake_worker(on, WORK__IN_FLIGHT="20", WORK__IMAGES="4") as frozen:
            await exchange.publish(requests)
            await ledger.fill(exchange, count=REQUESTS // 6)
            frozen.process.send_signal(signal.SIGSTOP)
            with fake_worker(on) as heir:
                await ledger.fill(exchange)
                await eventually(
                    lambda: committed_records(on) == REQUESTS, "the other commits what it took over"
                )
                frozen.process.send_signal(signal.SIGCONT)
                await eventually(
                    lambda: any(told["kind"] == "lost" for told in frozen.lines("rebalance")),
                    "it finds out that it lost its partitions",
                )
                assert await terminated(frozen) == 0
                assert committed_records(on) == REQUESTS
                assert await terminated(heir) == 0
    everything = Ledger(requests)
    everything.add(await all_verdicts(on))
    assert everything.verdicts.keys() == requests.keys()
    for verdicts in everything.verdicts.values():
        # What it was fetching timed out while it stood still: it may say so, and that is superseded
        assert any(verdict.status == "ok" for verdict in verdicts)
        decided = {(verdict.verdict_id, verdict.decision) for verdict in verdicts}
        assert len(decided) == len({verdict.verdict_id for verdict in verdicts})
