"""Hours of steady load on one worker: ``python -m tests.soak --minutes 30``.

What could leak is sampled: memory, file descriptors, children, threads, keys in Redis without a
time to live, series of metrics. After a warm-up in which caches fill up, a line is fitted to each.
Exits with 1 where one certainly grows, or where a request got no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import redis

from tests.bench.hosts import silent_host
from tests.bench.service import Client
from tests.conftest import REPOSITORY
from tests.e2e.scene import FAKE_WORKER, KAFKA, write_policy
from tests.soak.load import SHARES, SteadyLoad, odd_replies
from tests.soak.trend import Trend, trend
from worker.bench.image_server import image_server
from worker.demo.show import POLICY
from worker.demo.stage import Stage, Worker, stage, worker_process

FOLDER = REPOSITORY / "build" / "soak"

_COMMANDS = {"pocket": (sys.executable, "-m", "worker", "run"), "colours": FAKE_WORKER}
_EVERY_SECONDS = 2.0
_WARM_UP = 0.25  # of the time
_FEWEST = 10  # samples after it

#: What is sampled, in which unit, and by which share of its mean or by how many it may grow.
QUANTITIES = {
    "worker's memory": ("MiB", 0.03, 0.0),
    "decoders' memory": ("MiB", 0.1, 0.0),
    "file descriptors": ("", 0.0, 4.0),
    "threads": ("", 0.0, 2.0),
    "children": ("", 0.0, 0.5),
    "keys without TTL": ("", 0.0, 0.5),
    "metric series": ("", 0.01, 0.0),
}
Sample = dict[str, float]


@contextmanager
def soaked(encoder: str, *ports: int) -> Iterator[tuple[Stage, Worker]]:
    """A worker whose own cache is so small that it fills up while it warms up."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        policy = POLICY
        if encoder == "colours":
            policy = Path(folder) / "policy.yaml"
            write_policy(policy)
        with stage(odd_replies(), policy, broker=KAFKA) as on:
            allowed = ",".join(f"127.0.0.1:{port}" for port in (on.images.port, *ports))
            settings = {
                "IMAGEWARDEN_FETCH__ALLOW": allowed,
                "IMAGEWARDEN_CACHE__MEMORY_MAX_BYTES": str(2 * 2**20),
            }
            with worker_process(on, settings=settings, command=_COMMANDS[encoder]) as worker:
                yield on, worker
                if code := worker.stop():
                    raise worker.failed(f"the worker ended with {code}")


def sample(worker: Worker, admin: redis.Redis) -> Sample:
    process = psutil.Process(worker.process.pid)
    children = process.children(recursive=True)
    decoders = 0
    for child in children:
        with suppress(psutil.NoSuchProcess):  # one that is being replaced
            decoders += child.memory_info().rss
    return {
        "worker's memory": process.memory_info().rss / 2**20,
        "decoders' memory": decoders / 2**20,
        "file descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(children),
        "keys without TTL": sum(admin.ttl(key) == -1 for key in admin.scan_iter(count=1000)),
        "metric series": sum(not line.startswith("#") for line in worker.metrics().splitlines()),
    }


def soak(encoder: str, minutes: float, per_second: float) -> tuple[list[Trend], int, int]:
    """The trends, and how many requests there were and how many have an answer."""
    with (
        image_server(100) as photos,
        silent_host() as silent,
        soaked(encoder, photos, silent) as (on, worker),
    ):
        samples, asked, answered = asyncio.run(
            _watch(on, worker, photos, silent, 60 * minutes, per_second)
        )
    warm = [each for each in samples if each[0] >= 60 * minutes * _WARM_UP]
    if len(warm) < _FEWEST:
        raise SystemExit(f"{len(warm)} samples after the warm-up are too few; soak for longer")
    seconds = [at for at, _ in warm]
    trends = []
    for name, (unit, share, count) in QUANTITIES.items():
        values = [each[name] for _, each in warm]
        allowed = share * sum(values) / len(values) + count
        trends.append(trend(name, unit, seconds, values, allowed))
    return trends, asked, answered


async def _watch(
    on: Stage, worker: Worker, photos: int, silent: int, seconds: float, per_second: float
) -> tuple[list[tuple[float, Sample]], int, int]:
    samples: list[tuple[float, Sample]] = []
    stopped = asyncio.Event()
    async with Client(on) as client:
        load = SteadyLoad(client, on.topics.requests_topic, on.images, photos, silent, per_second)
        running = asyncio.create_task(load.run(stopped))
        with redis.Redis.from_url(on.redis) as admin:
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds and not running.done():
                samples.append((passed, await asyncio.to_thread(sample, worker, admin)))
                await asyncio.sleep(_EVERY_SECONDS)
        stopped.set()
        await running
        with suppress(TimeoutError):
            await client.until_answered(load.published)
        return samples, len(load.published), sum(name in client.answers for name in load.published)


def table(trends: list[Trend]) -> str:
    lines = [
        "| what | mean | first | last | slope an hour | growth (95 %) | allowed | flat |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in trends:
        name = f"{each.name}, {each.unit}" if each.unit else each.name
        lines.append(
            f"| {name} | {each.mean:,.1f} | {each.first:,.1f} | {each.last:,.1f} "
            f"| {each.per_hour:+,.2f} | {each.growth:+,.2f} "
            f"({each.low:+,.2f} to {each.high:+,.2f}) | {each.allowed:,.1f} "
            f"| {'yes' if each.flat else 'no'} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--encoder", choices=tuple(_COMMANDS), default="pocket")
    parser.add_argument("--json", type=Path, metavar="FILE", default=FOLDER / "soak.json")
    given = parser.parse_args()
    trends, asked, answered = soak(given.encoder, given.minutes, given.rate)
    mixed = ", ".join(f"{share} % {kind}" for kind, share in SHARES.items())
    print(f"{given.minutes:g} minutes, {given.rate:g} requests/s: {mixed}.\n")
    print(f"{asked:,} requests, {answered:,} answered.\n")
    print(table(trends))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"asked": asked, "answered": answered, "trends": [asdict(each) for each in trends]}
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if answered == asked and all(each.flat for each in trends) else 1


if __name__ == "__main__":
    sys.exit(main())
