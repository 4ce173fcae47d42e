"""What an edit of a large policy costs the verdicts meanwhile: ``python -m worker.bench.reload``.

200 categories of 20 prompts in two templates are loaded again and again while images are decided on
by them at a steady rate. A verdict's time counts from when it was due, so whatever keeps the event
loop from it counts too. The encoder takes no time, but its texts cost Python's lock more than a
model's do. First with edits of one threshold, then with edits in which every prompt is new. Prints
figures as a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from worker.background import spare_what_is_loaded
from worker.bench.noop_worker import NAME, NoEncoder
from worker.logs import set_up_logs
from worker.reload import PolicyStore
from worker.score import decide

_PROMPTS, _DIMENSION = 20, 768
_SECONDS_BETWEEN = 0.005


def _policy(version: int, edition: int, categories: int) -> str:
    """``edition`` is in every prompt; ``version`` in nothing that is embedded."""
    lines = [f"version: {version}", "id: large", f"model: {NAME}"]
    lines += ['templates: ["a photo of {}", "{}"]', "contrast: [food, a landscape, a person]"]
    lines += ["categories:"]
    for number in range(categories):
        prompts = [f"the thing {number} {place} of {edition}" for place in range(_PROMPTS)]
        lines += [f"  - id: things.thing{number}", "    prompts:"]
        lines += [f"      - {prompt}" for prompt in prompts]
        lines += [f"    contrast: [a look-alike of {number}]", f"    review: 0.{900 + version}"]
    return "\n".join(lines)


async def _verdict_ms(store: PolicyStore, until: asyncio.Event, at_least: int) -> list[float]:
    """Of each verdict until the event is set, or of so many, whatever is longer."""
    rows = np.random.default_rng(1).standard_normal((1, _DIMENSION))
    kept = (rows / np.linalg.norm(rows)).astype(np.float16)
    found: list[float] = []
    due = time.perf_counter()
    while not until.is_set() or len(found) < at_least:
        due = max(due + _SECONDS_BETWEEN, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
        decide(store.current(), kept, None)
        found.append((time.perf_counter() - due) * 1000)
    return found


def _told(name: str, found: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(found, (50, 99))
    return {f"p50 ms, {name}": p50, f"p99 ms, {name}": p99, f"worst ms, {name}": max(found)}


async def measure(categories: int, verdicts: int, edits: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.yaml"
        path.write_text(_policy(1, 0, categories))
        store = PolicyStore([path], NoEncoder(_DIMENSION), interval_seconds=0.05)
        await store.load_all()
        spare_what_is_loaded()
        watching = asyncio.create_task(store.watch())
        nothing = asyncio.Event()
        nothing.set()
        figures = _told("nothing else", await _verdict_ms(store, nothing, verdicts))
        version = 1
        for name, new_texts in (("a threshold is edited", False), ("every prompt is new", True)):
            applied = asyncio.Event()
            measuring = asyncio.create_task(_verdict_ms(store, applied, 0))
            for _ in range(edits):
                version += 1
                new = path.with_suffix(".new")
                new.write_text(_policy(version, version if new_texts else 0, categories))
                new.replace(path)
                while store.current().policy.version != version:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)
            applied.set()
            figures |= _told(name, await measuring)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        return figures


if __name__ == "__main__":
    set_up_logs("warning", "auto")
    counts = map(int, sys.argv[1:])
    print(json.dumps(asyncio.run(measure(*counts))))  # noqa: T201 - for who asks
