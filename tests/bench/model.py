"""The model alone, in a process of its own: ``python -m tests.bench.model IMAGES``.

Frames lie decoded in memory, and the encoder is the one that a worker with these settings loads.
It is called in both ways that could be fastest, and the faster one counts: by one thread with
everything at once, and by two threads with a batch each, as a worker calls it. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.bench.images import distinct_jpegs
from worker.assembly import load_model
from worker.imaging import Limits, decode
from worker.settings_load import load_settings
from worker.types import FramePlan, Pixels, PreprocessSpec


def _frames(count: int, spec: PreprocessSpec) -> Pixels:
    limits = Limits(50_000_000, 500_000_000)
    bodies = distinct_jpegs(count)
    return np.concatenate([decode(b, "", spec, FramePlan(), limits).pixels for b in bodies])


def main(images: int) -> None:
    settings = load_settings()
    encoder = load_model(settings)
    rows = settings.model.batch_rows or encoder.preferred_batch
    frames = _frames(64, encoder.info.preprocess)
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
    ways = {way.__name__: images_per_second(way) for way in (at_once, two_batches)}
    print(json.dumps({"batch_rows": rows, "images_per_second": max(ways.values()), "ways": ways}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
