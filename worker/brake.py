"""A policy's brake: where too many of a tenant's requests would be blocked, block becomes review.

Distinct requests are counted over a sliding window, and among them those that would be blocked,
whatever became of them: if only what was blocked counted, the brake would let go as soon as it
held. A request that is delivered again counts once, at its first time, and counts as blocked from
the first time that it was.

Each worker knows its own requests exactly, and twice a second tells the fleet what is new and asks
what all of them saw. In between, its own count on top of the fleet's last answer. Without the
fleet's counts it goes by its own requests alone, and sends all of them again when they are back:
adding twice changes nothing, and the server may have lost what it had.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

import structlog

from worker import telemetry
from worker.policy import BlockRate, Policy
from worker.schema import BrakeRef
from worker.seams import Counted, Counts, CountsAway, FleetCounts, Window

_log = structlog.get_logger(__name__)

#: Of all tenants together: about 30 MB. Beyond, those go first whose tenant was quiet longest.
_HELD: Final = 100_000

#: Likewise, as all of them are looked at twice a second.
_TENANTS: Final = 5_000

#: What one exchange sends and asks at most, to take some milliseconds; the rest has its turn next.
_SENT_AT_ONCE: Final = 2_000
_ASKED_AT_ONCE: Final = 64

_NONE: Final = Counts(0, 0)

#: One failure may be the event loop held up for longer than the time limit; two are the server's.
_FAILURES_UNTIL_AWAY: Final = 2


@dataclass(slots=True)
class _Recent:
    """One tenant's requests: this worker's within the window, and what the fleet said last."""

    limit: BlockRate
    requests: OrderedDict[bytes, tuple[float, bool]] = field(default_factory=OrderedDict)
    blocked: int = 0
    unsent: dict[bytes, bool] = field(default_factory=dict)  #: whether it never was sent
    fleet: Counts | None = None
    ahead: Counts = _NONE  #: what came since the fleet's answer
    asked_at: float = 0.0
    engaged: bool = False

    def add(self, request: bytes, blocked: bool, now: float) -> int:
        """How many more are held."""
        known = self.requests.get(request)
        if known is not None and (known[1] or not blocked):
            return 0
        self.requests[request] = (known[0] if known else now, blocked)
        self.blocked += blocked
        self.unsent[request] = True
        self.ahead = Counts(self.ahead.requests + (known is None), self.ahead.blocked + blocked)
        return int(known is None)

    def forget_oldest(self) -> None:
        request, (_, blocked) = self.requests.popitem(last=False)
        self.blocked -= blocked
        self.unsent.pop(request, None)

    def expire(self, until: float) -> int:
        """How many were let go."""
        count = 0
        while self.requests and next(iter(self.requests.values()))[0] <= until:
            self.forget_oldest()
            count += 1
        return count

    def answered(self, fleet: Counts, now: float) -> None:
        new = [request for request, new in self.unsent.items() if new]
        blocked = sum(self.requests[request][1] for request in new)
        self.fleet, self.ahead, self.asked_at = fleet, Counts(len(new), blocked), now

    def send_all_again(self) -> None:
        self.unsent = {request: self.unsent.get(request, False) for request in self.requests}

    def held(self) -> BrakeRef | None:
        """What a verdict to block is told while the brake holds."""
        scope: Literal["fleet", "worker"] = "worker" if self.fleet is None else "fleet"
        counts = Counts(len(self.requests), self.blocked)
        if self.fleet is not None:
            counts = Counts(
                self.fleet.requests + self.ahead.requests, self.fleet.blocked + self.ahead.blocked
            )
        if counts.requests < max(1, self.limit.min_requests):
            return None
        share = min(1.0, counts.blocked / counts.requests)  # two estimates: it may come to more
        if share <= self.limit.share:
            return None
        return BrakeRef(share=round(share, 4), requests=counts.requests, scope=scope)


class Brake:
    """The brakes of all policies and tenants; without ``fleet``, each worker has its own.

    An edited policy keeps its counts, unless the time they are counted over was edited.
    ``clock`` is in seconds since the epoch, as all workers have to agree on it.
    """

    def __init__(
        self,
        fleet: FleetCounts | None,
        *,
        interval_seconds: float = 0.5,
        breaker_seconds: float = 2.0,
        held: int = _HELD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._interval_seconds = interval_seconds
        self._breaker_seconds = breaker_seconds
        self._most_held = held
        self._clock = clock
        self._windows: OrderedDict[Window, _Recent] = OrderedDict()  # the quietest first
        self._held = 0
        self._failures = 0  # in a row
        self._next_try = -float("inf")

    def count(
        self, policy: Policy, tenant: str | None, request_id: str, *, blocked: bool
    ) -> BrakeRef | None:
        """Count a request, that would be ``blocked`` or not. Not None: it is not to be blocked, and
        why."""
        if (limit := policy.max_block_rate) is None:
            return None
        now = self._clock()
        window = Window(policy.id, tenant, limit.per_seconds)
        if (recent := self._windows.get(window)) is None:
            recent = self._windows[window] = _Recent(limit)
        self._windows.move_to_end(window)
        recent.limit = limit
        self._held -= recent.expire(now - limit.per_seconds)
        digest = hashlib.blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest()
        self._held += recent.add(digest, blocked, now)
        self._make_room()
        return recent.held() if blocked else None

    async def run(self) -> None:
        """Keeps up with the fleet until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.exchange()

    async def exchange(self) -> None:
        """One round trip, if one is due; and what has changed, told."""
        now = self._clock()
        too_many = len(self._windows) - _TENANTS
        for place, (window, recent) in enumerate(self._windows.items()):
            until = now if place < too_many else now - window.per_seconds
            self._held -= recent.expire(until)
        waiting = 0 < self._next_try - now <= self._breaker_seconds  # else the clock was put back
        if self._fleet is not None and self._windows and not waiting:
            await self._exchange(self._fleet, now)
        self._tell()
        for window in [window for window, recent in self._windows.items() if not recent.requests]:
            del self._windows[window]

    async def _exchange(self, fleet: FleetCounts, now: float) -> None:
        sent = list(islice(self._unsent(), _SENT_AT_ONCE))
        for one in sent:
            del self._windows[one.window].unsent[one.request]
        asked = heapq.nsmallest(
            _ASKED_AT_ONCE, self._windows, key=lambda window: self._windows[window].asked_at
        )
        try:
            answers = await fleet.exchange(sent, asked, now)
        except CountsAway as away:
            self._failed(away, sent, now)
            return
        if self._failures >= _FAILURES_UNTIL_AWAY:
            _log.info("brake_counts_back")
        self._failures = 0
        for window, counts in zip(asked, answers, strict=True):
            self._windows[window].answered(counts, now)

    def _unsent(self) -> Iterator[Counted]:
        for window, recent in self._windows.items():
            for request in recent.unsent:
                at, blocked = recent.requests[request]
                yield Counted(window, request, blocked, at)

    def _failed(self, away: CountsAway, sent: Sequence[Counted], now: float) -> None:
        self._failures += 1
        for window, request, _, _ in sent:
            if request in self._windows[window].requests:
                self._windows[window].unsent[request] = True
        if self._failures == 1:  # since then nothing was taken
            for recent in self._windows.values():
                recent.send_all_again()
        if self._failures < _FAILURES_UNTIL_AWAY:
            return
        self._next_try = now + self._breaker_seconds
        for recent in self._windows.values():
            recent.fleet = None
        if self._failures == _FAILURES_UNTIL_AWAY:
            _log.warning("brake_counts_away", error=str(away))

    def _make_room(self) -> None:
        while self._held > self._most_held:
            window, quietest = next(iter(self._windows.items()))
            if quietest.requests:
                quietest.forget_oldest()
                self._held -= 1
            else:
                self._windows.move_to_end(window)  # out of the way until the next exchange

    def _tell(self) -> None:
        engaged: dict[str, int] = {}
        for window, recent in self._windows.items():
            held = recent.held() if recent.requests else None
            engaged[window.policy] = engaged.get(window.policy, 0) + (held is not None)
            if (held is not None) != recent.engaged:
                recent.engaged = held is not None
                what = {"policy": window.policy, "tenant": window.tenant}
                if held is None:
                    _log.info("brake_released", **what)
                else:
                    _log.warning(
                        "brake_engaged",
                        **what,
                        share=held.share,
                        allowed=recent.limit.share,
                        requests=held.requests,
                        scope=held.scope,
                    )
        for policy, tenants in engaged.items():
            telemetry.BRAKES_ENGAGED.labels(policy).set(tenants)
        alone = self._fleet is None or self._failures >= _FAILURES_UNTIL_AWAY
        telemetry.BRAKE_LOCAL.set(alone and bool(self._windows))
