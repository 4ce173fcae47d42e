"""The fleet's counts without a server."""

from __future__ import annotations

from collections.abc import Sequence

from worker.seams import Counted, Counts, CountsAway, Window


class FakeCounts:
    """``seams.FleetCounts``, exact; share one among the brakes of a fleet. ``away``: nothing
    answers. ``exchanges`` counts those that were answered."""

    def __init__(self) -> None:
        self.seen: dict[Window, dict[bytes, Counted]] = {}
        self.away = False
        self.exchanges = 0

    async def exchange(
        self, added: Sequence[Counted], asked: Sequence[Window], now: float
    ) -> Sequence[Counts]:
        if self.away:
            raise CountsAway("the fake is away")
        self.exchanges += 1
        for one in added:
            seen = self.seen.setdefault(one.window, {})
            before = seen.get(one.request, one)
            seen[one.request] = one._replace(
                blocked=one.blocked or before.blocked, at=max(one.at, before.at)
            )
        return [self._counts(window, now) for window in asked]

    def _counts(self, window: Window, now: float) -> Counts:
        recent = [
            one for one in self.seen.get(window, {}).values() if one.at > now - window.per_seconds
        ]
        return Counts(len(recent), sum(one.blocked for one in recent))

    async def close(self) -> None: ...
