"""Look-alikes among kept embeddings: exact, and the same with and without faiss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.past.embedding_store import EmbeddingStore
from worker.past.search import Candidates, by_faiss, by_numpy, nearest
from worker.types import Embedding, EmbeddingKey, Float32Rows, ImageFacts

DIMENSION = 16
ENGINES = [by_numpy, by_faiss]


def embedding(name: str, rows: np.ndarray, plan: str = "sha256:p") -> Embedding:  # type: ignore[type-arg]
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Embedding(
        key=EmbeddingKey(sha256, "sha256:m", plan),
        rows=rows.astype(np.float16),
        facts=ImageFacts(
            sha256=sha256,
            perceptual_hash=None,
            media_type="image/png",
            width=8,
            height=8,
            bytes=100,
            frames=len(rows),
            rows=tuple(range(len(rows))),
        ),
    )


def units(seed: int, count: int) -> Float32Rows:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    unit: Float32Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def past(seed: int, images: int) -> list[Embedding]:
    """Images of one to three rows, some of them alike to the last bit."""
    random = np.random.default_rng(seed)
    kept: list[Embedding] = []
    for place in range(images):
        rows = units(seed * 1000 + place, int(random.integers(1, 4)))
        again = kept[int(random.integers(len(kept)))] if kept and random.random() < 0.3 else None
        kept.append(embedding(f"{seed} {place}", again.rows if again else rows))
    return kept


def search(
    kept: Sequence[Embedding], query: Float32Rows, engine: Candidates, **options: int
) -> list[tuple[str, float]]:
    with EmbeddingStore() as store:
        for one in kept:
            store.add(one)
        matches = nearest(
            query, store, np.arange(len(kept)), candidates=engine, **{"top": 10, **options}
        )
    return [(match.sha256, match.cosine) for match in matches]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Candidates:
    if request.param is by_faiss:
        pytest.importorskip("faiss")
    candidates: Candidates = request.param
    return candidates


def test_nearest_image_comes_first_with_its_cosine(engine: Candidates) -> None:
    query = units(1, 1)
    other = units(2, 1)
    kept = [embedding("other", other), embedding("itself", query), embedding("against", -query)]
    matches = search(kept, query, engine)
    assert [sha256 for sha256, _ in matches] == [kept[place].key.sha256 for place in (1, 0, 2)]
    assert matches[0][1] == pytest.approx(1.0, abs=1e-6)
    assert matches[1][1] == pytest.approx(float(query[0] @ other[0]), abs=1e-3)
    assert matches[2][1] == pytest.approx(-1.0, abs=1e-6)


def test_image_counts_by_the_row_nearest_to_any_of_the_query(engine: Candidates) -> None:
    first, second, third = (units(seed, 1) for seed in (1, 2, 3))
    kept = [embedding("frames", np.concatenate([third, second])), embedding("still", third)]
    query = np.concatenate([first, second])
    assert search(kept, query, engine, top=1) == [
        (kept[0].key.sha256, pytest.approx(1.0, abs=1e-6))
    ]


def test_image_that_was_kept_by_two_plans_is_found_once(engine: Candidates) -> None:
    rows = units(4, 2)
    kept = [
        embedding("a", rows[:1], plan="sha256:p"),
        embedding("a", rows[1:], plan="sha256:q"),
        embedding("b", rows[1:]),
    ]
    matches = search(kept, rows[1:], engine)
    assert {sha256 for sha256, _ in matches} == {kept[0].key.sha256, kept[2].key.sha256}
    assert [cosine for _, cosine in matches] == [pytest.approx(1.0, abs=1e-6)] * 2


def test_nothing_is_found_in_an_empty_past(engine: Candidates) -> None:
    assert search([], units(1, 1), engine) == []


def test_embedding_without_a_direction_is_near_to_nothing(engine: Candidates) -> None:
    kept = [embedding("nothing", np.zeros((1, DIMENSION)))]
    assert search(kept, units(1, 1), engine) == [(kept[0].key.sha256, 0.0)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), images=st.integers(0, 60), top=st.integers(1, 20))
def test_faiss_and_numpy_find_what_looking_at_everything_finds(
    seed: int, images: int, top: int
) -> None:
    pytest.importorskip("faiss")
    kept, query = past(seed, images), units(seed + 1, 2)
    by_one, by_other = (search(kept, query, engine, top=top) for engine in ENGINES)
    assert by_one == by_other
    assert by_one == search(kept, query, by_numpy, top=max(images, 1))[:top]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_how_many_are_looked_at_together_changes_nothing(engine: Candidates, block: int) -> None:
    kept, query = past(5, 50), units(6, 1)
    assert search(kept, query, engine, block=block) == search(kept, query, engine)
