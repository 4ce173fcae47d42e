"""What an edit of a large policy costs the verdicts meanwhile: ``python -m tests.bench.reload``.

200 categories of 20 prompts in two templates are loaded again and again while images are decided on
by them at a steady rate. A verdict's time counts from when it was due, so whatever keeps the event
loop from it counts too. The encoder is the tests' own, whose texts cost Python's lock more than a
model's do. First with edits of one threshold, then with edits in which every prompt is new.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.fakes import FakeEncoder
from worker.background import spare_what_is_loaded
from worker.logs import set_up_logs
from worker.reload import PolicyStore
from worker.score import decide

CATEGORIES, PROMPTS, DIMENSION = 200, 20, 768
SECONDS_BETWEEN = 0.005
VERDICTS, EDITS = 1000, 5


def policy(version: int, edition: int) -> str:
    """``edition`` is in every prompt; ``version`` in nothing that is embedded."""
    lines = [f"version: {version}", "id: large", "model: fake"]
    lines += ['templates: ["a photo of {}", "{}"]', "contrast: [food, a landscape, a person]"]
    lines += ["categories:"]
    for number in range(CATEGORIES):
        prompts = [f"the thing {number} {place} of {edition}" for place in range(PROMPTS)]
        lines += [f"  - id: things.thing{number}", "    prompts:"]
        lines += [f"      - {prompt}" for prompt in prompts]
        lines += [f"    contrast: [a look-alike of {number}]", f"    review: 0.{900 + version}"]
    return "\n".join(lines)


async def verdict_ms(store: PolicyStore, until: asyncio.Event, at_least: int) -> list[float]:
    """Of each verdict until the event is set, or of so many, whatever is longer."""
    rows = np.random.default_rng(1).standard_normal((1, DIMENSION))
    kept = (rows / np.linalg.norm(rows)).astype(np.float16)
    found: list[float] = []
    due = time.perf_counter()
    while not until.is_set() or len(found) < at_least:
        due = max(due + SECONDS_BETWEEN, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
        decide(store.current(), kept, None)
        found.append((time.perf_counter() - due) * 1000)
    return found


def told(name: str, found: list[float]) -> str:
    p99 = statistics.quantiles(found, n=100)[98]
    middle, worst = statistics.median(found), max(found)
    return f"{name:22} p50 {middle:5.2f} ms, p99 {p99:5.2f}, worst {worst:6.2f} of {len(found)}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.yaml"
        path.write_text(policy(1, 0))
        store = PolicyStore([path], FakeEncoder(DIMENSION), interval_seconds=0.05)
        began = time.perf_counter()
        await store.load_all()
        spare_what_is_loaded()
        print(f"loaded in {time.perf_counter() - began:.1f} s, {path.stat().st_size:,} bytes")
        watching = asyncio.create_task(store.watch())
        nothing = asyncio.Event()
        nothing.set()
        print(told("nothing else", await verdict_ms(store, nothing, VERDICTS)))
        version = 1
        for name, new_texts in (("edits of a threshold", False), ("every prompt is new", True)):
            applied, seconds = asyncio.Event(), []
            measuring = asyncio.create_task(verdict_ms(store, applied, 0))
            for _ in range(EDITS):
                version += 1
                began = time.perf_counter()
                new = path.with_suffix(".new")
                new.write_text(policy(version, version if new_texts else 0))
                new.replace(path)
                while store.current().policy.version != version:
                    await asyncio.sleep(0.01)
                seconds.append(time.perf_counter() - began)
            applied.set()
            found = await measuring
            print(f"{told(name, found)}; {statistics.median(seconds):.1f} s an edit")
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


if __name__ == "__main__":
    set_up_logs("warning", "auto")
    asyncio.run(main())
