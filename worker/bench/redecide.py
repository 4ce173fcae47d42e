"""Deciding on the past, beside the matrix product alone: ``python -m worker.bench.redecide``.

On one core: 12 categories of 6 prompts and 4 contrasts, 5 contrasts shared by all, at 768
dimensions, with images of one row; then with a head, two exceptions and a frame rule in each
category. The product is what no way of scoring can do without: float16 to float64, times each text
once. Prints figures as a JSON object.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from worker.bench.noop_worker import NAME, NoEncoder
from worker.compile import compile_policy, texts_of
from worker.compiled import CompiledPolicy
from worker.decide_many import decide_many
from worker.policy import Head, Policy
from worker.policy_yaml import parse_policy
from worker.types import Float16Rows

_DIMENSION, _CATEGORIES, _TIMES = 768, 12, 5
_ENCODER = NoEncoder(_DIMENSION)


def _policy(**keys: Any) -> Policy:
    categories = [
        {
            "id": f"category{number}",
            "prompts": [f"prompt {number} {place}" for place in range(6)],
            "contrast": [f"contrast {number} {place}" for place in range(4)],
            "review": 0.5,
            **{name: value(number) for name, value in keys.items()},
        }
        for number in range(_CATEGORIES)
    ]
    shared = [f"shared {place}" for place in range(5)]
    content = {"version": 1, "id": "bench", "model": NAME, "contrast": shared}
    return parse_policy(json.dumps({**content, "categories": categories}).encode(), "bench.yaml")


def _with_everything() -> Policy:
    whole = _policy(
        exceptions=lambda number: [f"exception {number}", f"another exception {number}"],
        frames=lambda number: {"at_least": 2},
    )
    vectors = np.random.default_rng(2).standard_normal((_CATEGORIES, _DIMENSION)).tolist()
    heads = [Head("", "", _ENCODER.info.space, tuple(vector), 0.0, 0.5) for vector in vectors]
    return replace(
        whole,
        categories=tuple(
            replace(one, head=head) for one, head in zip(whole.categories, heads, strict=True)
        ),
    )


def _compiled(policy: Policy) -> CompiledPolicy:
    texts = texts_of(policy)
    embeddings = dict(zip(texts, _ENCODER.encode_texts(texts), strict=True))
    return compile_policy(policy, _ENCODER.info, embeddings)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _decide_all(compiled: CompiledPolicy, rows: Float16Rows) -> None:
    decide_many(compiled, rows, np.arange(len(rows)), [None] * len(rows))


def measure(images: int) -> dict[str, float]:
    """Each call takes its turn, so that a change of the machine's pace meets them alike."""
    rows = np.random.default_rng(1).standard_normal((images, _DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = rows.astype(np.float16)
    plain = _compiled(_policy())
    full = _compiled(_with_everything())
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: kept.astype(np.float64) @ plain.vectors,
        "decisions": lambda: _decide_all(plain, kept),
        "with everything": lambda: _decide_all(full, kept),
    }
    times = [{name: _seconds(call) for name, call in calls.items()} for _ in range(_TIMES)]

    def share(name: str) -> float:
        return statistics.median(one["product"] / one[name] for one in times)

    return {
        "embeddings/s": images / statistics.median(one["decisions"] for one in times),
        "of the product alone": share("decisions"),
        "of the product alone, heads, exceptions, frames": share("with everything"),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))  # noqa: T201 - for who asks
