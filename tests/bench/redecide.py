"""Deciding on the past, beside the matrix product alone: ``python -m tests.bench.redecide``.

On one core: 12 categories of 6 prompts and 4 contrasts, 5 contrasts shared by all, at 768
dimensions, with images of one row; then with a head, two exceptions and a frame rule in each
category. The product is what no way of scoring can do without: float16 to float64, times each text
once. Each round times all of them, so that a change of the machine's pace meets them alike; of the
rounds' ratios the median counts.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.compiled import CompiledPolicy
from worker.decide_many import decide_many
from worker.policy import Head, Policy
from worker.types import Float16Rows

IMAGES, DIMENSION, CATEGORIES, ROUNDS = 20_000, 768, 12, 9
ENCODER = FakeEncoder(DIMENSION, logit_scale=100.0)


def policy(**keys: Any) -> Policy:
    return policy_of(
        *(
            category(
                f"category{number}",
                prompts=[f"prompt {number} {place}" for place in range(6)],
                contrast=[f"contrast {number} {place}" for place in range(4)],
                **{name: value(number) for name, value in keys.items()},
            )
            for number in range(CATEGORIES)
        ),
        contrast=[f"shared {place}" for place in range(5)],
    )


def with_everything() -> Policy:
    whole = policy(
        exceptions=lambda number: [f"exception {number}", f"another exception {number}"],
        frames=lambda number: {"at_least": 2},
    )
    vectors = np.random.default_rng(2).standard_normal((CATEGORIES, DIMENSION)).tolist()
    heads = [Head("", "", ENCODER.info.space, tuple(vector), 0.0, 0.5) for vector in vectors]
    return replace(
        whole,
        categories=tuple(
            replace(one, head=head) for one, head in zip(whole.categories, heads, strict=True)
        ),
    )


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def decide_all(compiled: CompiledPolicy, rows: Float16Rows) -> None:
    decide_many(compiled, rows, np.arange(len(rows)), [None] * len(rows))


def main() -> None:
    rows = np.random.default_rng(1).standard_normal((IMAGES, DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = rows.astype(np.float16)
    plain = compiled_of(policy(), ENCODER)
    full = compiled_of(with_everything(), ENCODER)
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: kept.astype(np.float64) @ plain.vectors,
        "decide": lambda: decide_all(plain, kept),
        "everything": lambda: decide_all(full, kept),
    }
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    for name in calls:
        per_second = IMAGES / statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one["product"] for one in rounds)
        print(f"{name:10} {per_second:9,.0f} embeddings a second, {ratio:.2f} x the product")


if __name__ == "__main__":
    main()
