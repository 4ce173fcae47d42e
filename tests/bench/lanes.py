"""What a backfill costs live requests: ``python -m tests.bench.lanes``.

Live requests come at a steady rate and are timed from when they are due to when their verdict is
read: alone, and beside a backfill, which is thousands of requests on a topic of their own, worked
on as fast as it goes. At the end, for contrast, the same backfill on the live topic.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.bench.service import ENCODERS, Client, image_requests, service
from worker.bench.image_server import image_server
from worker.demo.stage import Stage

_IMAGES = 100  # distinct pictures; the others are copies of them with other bytes
_DELAY_SECONDS = 0.03  # until an image comes
_WARM_UP = 40


@dataclass(frozen=True)
class Plan:
    rounds: int
    rate: float
    """Live requests a second, evenly."""
    live: int
    """Of them in a round, or more, until the backfill is done."""
    backfill: int


@dataclass(frozen=True)
class Round:
    latencies_ms: Sequence[float]
    """Of the live requests."""
    backfilled: int = 0
    seconds: float = 0.0
    """For the backfill."""

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies_ms, share))


async def _round(
    client: Client,
    topic: str | None,
    live: Iterator[tuple[str, bytes]],
    backfill: Mapping[str, bytes],
    plan: Plan,
) -> Round:
    """Live requests beside a backfill on ``topic``, or beside nothing."""
    clock = asyncio.get_running_loop().time
    if topic:
        await client.publish(topic, backfill)
        await client.until_answered(itertools.islice(backfill, 1))
    started = clock()
    due: dict[str, float] = {}
    async with asyncio.TaskGroup() as group:
        backfilling = group.create_task(client.until_answered(backfill))
        while len(due) < plan.live or not backfilling.done():
            name, value = next(live)
            due[name] = started + len(due) / plan.rate
            await asyncio.sleep(due[name] - clock())
            group.create_task(client.publish(client.topics.requests_topic, {name: value}))
    await client.until_answered(due)
    client.all_ok((*due, *backfill))
    at = client.answered_at
    return Round(
        latencies_ms=[1000 * (at[name] - due[name]) for name in due],
        backfilled=len(backfill),
        seconds=max((at[name] - started for name in backfill), default=0.0),
    )


async def measure(on: Stage, port: int, plan: Plan) -> dict[str, list[Round]]:
    """By what was beside the live requests."""
    numbers = itertools.count()
    live = (item for number in numbers for item in image_requests(port, [number]).items())
    own, shared = on.topics.backfill_topic, on.topics.requests_topic
    found: dict[str, list[Round]] = {"nothing": [], "a backfill": [], "a backfill among them": []}
    async with Client(on) as client:

        async def beside(topic: str | None, plan: Plan = plan) -> Round:
            backfill = itertools.islice(numbers, plan.backfill if topic else 0)
            return await _round(client, topic, live, image_requests(port, backfill), plan)

        await beside(None, Plan(1, plan.rate, _WARM_UP, 0))
        for _ in range(plan.rounds):
            for what, topic in zip(found, (None, own), strict=False):
                found[what].append(await beside(topic))
        found["a backfill among them"].append(await beside(shared))
    return found


def table(found: Mapping[str, Sequence[Round]]) -> str:
    """Medians of the rounds, and from which to which."""
    alone = found["nothing"]
    lines = [
        "| beside live requests | live | p50, ms | p99, ms | p99 to that without | backfill |",
        "|---|---|---|---|---|---|",
    ]
    for what, rounds in found.items():
        ratios = [b.percentile(99) / a.percentile(99) for a, b in zip(alone, rounds)]  # noqa: B905
        backfilled = sum(each.backfilled for each in rounds)
        rate = backfilled / sum(each.seconds for each in rounds) if backfilled else 0.0
        cells = (
            what,
            str(sum(len(each.latencies_ms) for each in rounds)),
            *(_spread([each.percentile(share) for each in rounds], 0) for share in (50, 99)),
            _spread(ratios, 2),
            f"{backfilled} answered, {rate:.0f}/s" if backfilled else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    told = f"{statistics.median(values):.{digits}f}"
    return (
        told
        if len(values) == 1
        else (f"{told} ({min(values):.{digits}f} to {max(values):.{digits}f})")
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lanes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds: counts, no times")
    parser.add_argument("--encoder", choices=ENCODERS, default=ENCODERS[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20.0, help="live requests a second")
    parser.add_argument("--backfill", type=int, default=3000, help="requests in a round")
    asked = parser.parse_args()
    plan = Plan(asked.rounds, asked.rate, 300, asked.backfill)
    if asked.quick:
        plan = Plan(1, asked.rate, 20, 200)
    with (
        image_server(_IMAGES, delay_seconds=_DELAY_SECONDS) as port,
        service(asked.encoder, port) as on,
    ):
        print(table(asyncio.run(measure(on, port, plan))))


if __name__ == "__main__":
    main()
