"""`imagewarden top` of a worker at work."""

from __future__ import annotations

from tests.e2e.scene import Ledger, fake_worker, gallery, requests_of
from worker.commands.top import Endpoint, Fleet
from worker.commands.top_numbers import Numbers
from worker.demo.stage import Exchange, Stage

REQUESTS = 30


async def test_top_tells_what_a_worker_did_between_two_looks(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS)
    requests = requests_of(on, on.images.replies)
    with fake_worker(on) as worker:
        address = worker.address()
        assert address is not None
        fleet = Fleet([Endpoint(address)])
        fleet.look()
        async with Exchange(on) as exchange:
            ledger = Ledger(requests)
            await exchange.publish(requests)
            await ledger.fill(exchange)
        told, numbers = fleet.look()
        fleet.close()
    assert isinstance(told[address], Numbers)
    assert numbers is not None
    assert numbers.verdicts
    assert numbers.actions.keys() == {"allow", "review", "block"}
    assert numbers.cached == 0.0
    assert sum(numbers.lag.values()) == 0
    assert numbers.p99_seconds
    worked = {each.stage for each in numbers.stages if each.worked_seconds}
    assert {"fetch", "decode", "embed"} <= worked
    assert numbers.slowest is not None
    assert numbers.fullest is not None
