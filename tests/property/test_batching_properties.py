from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from worker.batching import Batcher


@given(
    weights=st.lists(st.integers(1, 6), max_size=40),
    max_weight=st.integers(1, 8),
    concurrency=st.integers(1, 3),
    pauses=st.lists(st.integers(0, 4), max_size=40),
    work=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    given_up=st.sets(st.integers(0, 39)),
)
def test_nothing_is_lost_or_repeated_under_any_interleaving(
    weights: list[int],
    max_weight: int,
    concurrency: int,
    pauses: list[int],
    work: list[int],
    given_up: set[int],
) -> None:
    batches: list[list[int]] = []

    async def process(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        for _ in range(work[len(batches) % len(work)]):
            await asyncio.sleep(0)
        return [-item for item in items]

    async def scenario() -> list[object]:
        batcher = Batcher(
            process, max_weight=max_weight, max_wait_seconds=0.0005, concurrency=concurrency
        )
        runner = asyncio.create_task(batcher.run())
        tasks = []
        for item, weight in enumerate(weights):
            tasks.append(asyncio.create_task(batcher.submit(item, weight=weight)))
            for _ in range(pauses[item] if item < len(pauses) else 0):
                await asyncio.sleep(0)
            if item in given_up:
                tasks[-1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        return list(answers)

    answers = asyncio.run(scenario())
    for item, answer in enumerate(answers):
        assert answer == -item or (item in given_up and isinstance(answer, asyncio.CancelledError))
    processed = [item for batch in batches for item in batch]
    assert len(processed) == len(set(processed))
    assert set(range(len(weights))) - given_up <= set(processed)
    for batch in batches:
        assert sum(weights[item] for item in batch) <= max_weight or len(batch) == 1
