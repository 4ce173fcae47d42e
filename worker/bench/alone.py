"""One part alone, in a process of its own: ``python -m worker.bench.alone PART COUNTS``.

Prints what it found as a JSON object: figures by name.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from worker.assembly import BATCHES_IN_FLIGHT, fetcher_of, load_model
from worker.batch_encoder import BatchEncoder
from worker.bench.image_server import path
from worker.bench.noop_worker import PREPROCESS
from worker.bench.photos import photos, photos_at
from worker.imaging import Limits, decode
from worker.logs import set_up_logs
from worker.settings_load import load_settings
from worker.types import Fetched, FramePlan, Pixels

_WAYS_OF = 64  # frames in memory
_CONCURRENT_DOWNLOADS = 48
_LOAD = 0.1  # of the model's own rate, where batches are hardly ever full


def measured(module: str, *arguments: object, environment: Mapping[str, str]) -> dict[str, float]:
    """The figures that a module of this package prints; ``environment`` are settings. Raises
    ``RuntimeError``."""
    told = subprocess.run(
        [sys.executable, "-m", f"worker.bench.{module}", *map(str, arguments)],
        env={
            **{name: value for name, value in os.environ.items() if "IMAGEWARDEN" not in name},
            **environment,
        },
        stdout=subprocess.PIPE,
        check=False,
    )
    if told.returncode:
        raise RuntimeError(f"{module} ended with {told.returncode}")
    figures: dict[str, float] = json.loads(told.stdout)
    return figures


def model(images: int) -> dict[str, float]:
    """Frames lie decoded in memory, and the encoder is the one that a worker with these settings
    loads. It is called in both ways that could be fastest, and the faster one counts: by one thread
    with everything at once, and by two threads with a batch each, as a worker calls it."""
    settings = load_settings()
    encoder = load_model(settings)
    rows = settings.model.batch_rows or encoder.preferred_batch
    frames = photos_at(encoder.info.preprocess.size, max(_WAYS_OF, 2 * rows))
    passes = -(-images // len(frames))

    def at_once() -> None:
        for _ in range(passes):
            encoder.encode_images(frames)

    def two_batches() -> None:
        batches = [frames[start : start + rows] for start in range(0, len(frames), rows)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(encoder.encode_images, batches * passes))

    def images_per_second(run: Callable[[], None]) -> float:
        began = time.perf_counter()
        run()
        return passes * len(frames) / (time.perf_counter() - began)

    encoder.encode_images(frames)
    return {"images/s": max(images_per_second(at_once), images_per_second(two_batches))}


def batching(images: int) -> dict[str, float]:
    """How much longer than the model's own time for one image it takes to be encoded where images
    come at random times, at a tenth of the rate that the model can do: through batches, and by
    threads that call the model for each image, where only those that come together wait."""
    settings = load_settings()
    encoder = load_model(settings)
    rows = settings.model.batch_rows or encoder.preferred_batch
    frames = photos_at(encoder.info.preprocess.size, rows)
    encoder.encode_images(frames)
    per_second = rows / _seconds(lambda: encoder.encode_images(frames))
    # after pauses as long as those between requests: idle processors have forgotten the weights
    own = _seconds(
        lambda: encoder.encode_images(frames[:1]), times=50, pause=1 / (_LOAD * per_second)
    )

    async def timed(encode: Callable[[Pixels], Awaitable[object]]) -> list[float]:
        chance = random.Random(0)
        found: list[float] = []

        async def one() -> None:
            asked = time.perf_counter()
            await encode(frames[:1])
            found.append(time.perf_counter() - asked)

        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(images):
                due += chance.expovariate(_LOAD * per_second)
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(one())
        return found

    async def batched() -> list[float]:
        batches = BatchEncoder(
            encoder,
            batch_rows=rows,
            batch_wait_seconds=settings.model.batch_wait_seconds,
            concurrency=BATCHES_IN_FLIGHT,
        )
        running = asyncio.create_task(batches.run())
        try:
            return await timed(batches.encode)
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def unbatched() -> list[float]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(BATCHES_IN_FLIGHT) as threads:
            return await timed(
                lambda pixels: loop.run_in_executor(threads, encoder.encode_images, pixels)
            )

    found = {"model's own ms": 1000 * own}
    for name, run in (("added by batching", batched), ("added without batches", unbatched)):
        p50, p99 = np.percentile(asyncio.run(run()), (50, 99)) - own
        found |= {f"ms {name}, p50": 1000 * p50, f"ms {name}, p99": 1000 * p99}
    return found


def decoding(kilobytes: int, images: int) -> dict[str, float]:
    """On one core, without and with the perceptual hash."""
    bodies = photos(min(images, 20), kilobytes)
    limits = Limits(50_000_000, 500_000_000)
    found = {}
    for name, hashed in (("", False), (", hashed", True)):
        for body in bodies[:2]:
            decode(body, "", PREPROCESS, FramePlan(), limits, hashed=hashed)
        began = time.process_time()
        for number in range(images):
            body = bodies[number % len(bodies)]
            decode(body, "", PREPROCESS, FramePlan(), limits, hashed=hashed)
        seconds = time.process_time() - began
        found[f"core-ms/image, {kilobytes} KB{name}"] = 1000 * seconds / images
    return found


def fetching(port: int, requests: int) -> dict[str, float]:
    """One event loop, over loopback; the core's time is that of this process alone."""

    async def run() -> tuple[float, float]:
        fetcher = fetcher_of(load_settings())
        numbers = iter(range(-2 * _CONCURRENT_DOWNLOADS, requests))

        async def ask() -> None:
            for number in numbers:
                url = f"http://127.0.0.1:{port}{path(number % 100)}"
                if not isinstance(await fetcher.fetch(url), Fetched):
                    raise RuntimeError(f"{url} gave no body")
                if number == 0:
                    began.extend((time.perf_counter(), time.process_time()))

        began: list[float] = []
        await asyncio.gather(*(ask() for _ in range(_CONCURRENT_DOWNLOADS)))
        ended = time.perf_counter(), time.process_time()
        await fetcher.close()
        return ended[0] - began[0], ended[1] - began[1]

    wall, core = asyncio.run(run())
    return {"requests/s": requests / wall, "core-ms/image": 1000 * core / requests}


def _seconds(call: Callable[[], object], times: int = 9, pause: float = 0) -> float:
    """The median; ``pause`` is in seconds, before each call."""
    found = []
    for _ in range(times):
        time.sleep(pause)
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


_PARTS: Mapping[str, Callable[..., dict[str, float]]] = {
    "model": model,
    "batching": batching,
    "decoding": decoding,
    "fetching": fetching,
}


if __name__ == "__main__":
    set_up_logs("warning", "auto")  # to standard error
    part, *given = sys.argv[1:]
    print(json.dumps(_PARTS[part](*map(int, given))))  # noqa: T201 - for who asks
