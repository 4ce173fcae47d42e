"""How long verdicts take at a share of the peak rate: each request is timed from when it was due,
whatever kept it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence

import numpy as np

from worker.bench.service import WORKER, Client, requests, workers
from worker.demo.stage import Stage

SHARES = (0.2, 0.5, 0.7, 0.9)

_FEWEST = 20


def curve(
    on: Stage,
    *,
    peak_images: int,
    seconds: float,
    environment: Mapping[str, str],
    command: Sequence[str] = WORKER,
) -> dict[str, float]:
    """Milliseconds by share; first so many images as fast as it goes, for the peak rate. Raises
    ``RuntimeError`` where a verdict is missing or wrong."""
    return asyncio.run(_curve(on, peak_images, seconds, environment, command))


async def _curve(
    on: Stage,
    peak_images: int,
    seconds: float,
    environment: Mapping[str, str],
    command: Sequence[str],
) -> dict[str, float]:
    async with Client(on) as client:
        flooded = requests(on, range(peak_images))
        await client.publish(flooded)
        with workers(on, command, environment) as [worker]:
            await asyncio.to_thread(worker.wait_until_ready)
            await client.until(peak_images)
            peak = _steady_rate([at for at, _ in client.answers])
            found = {"images/s at the peak": peak}
            published = peak_images
            for share in SHARES:
                count = max(round(share * peak * seconds), _FEWEST)
                asked = requests(on, range(published, published + count), published)
                published += count
                due = await _ask_at_random(client, asked, share * peak)
                await client.until(published)
                arrivals = client.arrivals(asked)
                times = [1000 * (arrivals[name] - due[name]) for name in asked]
                p50, p99 = np.percentile(times, (50, 99))
                found |= {f"p50 ms at {share:.0%}": p50, f"p99 ms at {share:.0%}": p99}
    return found


def _steady_rate(arrivals: Sequence[float]) -> float:
    first, last = round(0.2 * len(arrivals)), round(0.9 * len(arrivals))
    return (last - first) / (arrivals[last] - arrivals[first])


async def _ask_at_random(
    client: Client, asked: Mapping[str, bytes], per_second: float
) -> dict[str, float]:
    """When each was due: at random, as people come."""
    chance = random.Random(0)
    due: dict[str, float] = {}
    at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for name, value in asked.items():
            at += chance.expovariate(per_second)
            due[name] = at
            await asyncio.sleep(at - time.perf_counter())
            group.create_task(client.publish({name: value}))
    return due
