"""Verdicts joined with embeddings, and embeddings on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.past_records import (
    ENCODER,
    NOON,
    compiled,
    embedding,
    past_of,
    records,
    verdict,
)
from worker.errors import ErrorCode
from worker.past.embedding_store import NOWHERE, EmbeddingStore
from worker.past.window import Window
from worker.types import Embedding, FramePlan, Record

POLICY = compiled()
RED, GREEN = embedding("red", "red"), embedding("green", "green", "blue")
PLAN = FramePlan().digest


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


def place_of(store: EmbeddingStore, of: Embedding) -> int:
    [place] = store.places([(of.key.sha256, of.key.model)], of.key.plan)
    return int(place)


def same(one: Embedding, other: Embedding) -> bool:
    return one.key == other.key and one.facts == other.facts and (one.rows == other.rows).all()


# ---------------------------------------------------------------- the store


def test_an_embedding_comes_back_as_it_was(store: EmbeddingStore) -> None:
    hashed = embedding("hashed", "blue", hash_="0f" * 32)
    for one in (RED, GREEN, hashed):
        store.add(one)
    for one in (RED, GREEN, hashed):
        assert same(store[place_of(store, one)], one)


def test_it_grows_after_it_was_read(store: EmbeddingStore) -> None:
    store.add(RED)
    assert same(store[place_of(store, RED)], RED)
    store.add(GREEN)
    assert same(store[place_of(store, GREEN)], GREEN)


def test_of_equal_keys_the_last_one_is_found(store: EmbeddingStore) -> None:
    store.add(RED)
    newer = replace(RED, facts=replace(RED.facts, width=7))
    store.add(newer)
    assert same(store[place_of(store, RED)], newer)
    assert len(store) == 1


def test_another_plan_or_model_is_another_embedding(store: EmbeddingStore) -> None:
    other_plan = embedding("red", "red", plan=FramePlan(views="pad"))
    other_model = embedding("red", "red", model="sha256:" + "5" * 64)
    for one in (RED, other_plan, other_model):
        store.add(one)
    for one in (RED, other_plan, other_model):
        assert same(store[place_of(store, one)], one)


def test_what_was_forgotten_is_nowhere(store: EmbeddingStore) -> None:
    store.add(RED)
    store.forget(*str(RED.key).split(":"))
    assert place_of(store, RED) == NOWHERE
    assert RED.key not in store


def test_a_model_has_one_dimension(store: EmbeddingStore) -> None:
    store.add(RED)
    with pytest.raises(ValueError, match="16 numbers a row"):
        store.add(replace(RED, rows=RED.rows[:, :16]))


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=12), data=st.data())
def test_rows_of_any_images_in_any_order_are_theirs(counts: list[int], data: st.DataObject) -> None:
    colours = ("red", "green", "blue", "black", "white")
    images = [embedding(str(n), *colours[:count]) for n, count in enumerate(counts)]
    asked = data.draw(st.lists(st.sampled_from(range(len(images))), min_size=1))
    with EmbeddingStore() as store:
        for one in images:
            store.add(one)
        found = store.rows(np.array(asked))
    assert (found.values == np.concatenate([images[at].rows for at in asked])).all()
    assert found.starts.tolist() == np.cumsum([0, *(counts[at] for at in asked)])[:-1].tolist()
    assert found.frames.tolist() == [frame for at in asked for frame in range(counts[at])]


# ---------------------------------------------------------------- the join


async def test_the_past_is_the_verdicts_in_force_and_the_embeddings_of_their_images(
    store: EmbeddingStore,
) -> None:
    first = verdict("a", RED, POLICY)
    second = verdict("a", GREEN, POLICY, supersedes=first.verdict_id)
    unseen = embedding("nobody asked for it", "blue")
    past = await past_of(records(first, second, first), records(unseen, RED, GREEN), store)
    assert past.verdicts["verdict_id"].to_pylist() == [str(second.verdict_id)]
    assert unseen.key not in store
    assert list(past.images()) == [(GREEN.key.sha256, ENCODER.info.digest)]
    assert past.embedded() == 1
    assert (past.tally.read, past.tally.repeats, past.tally.overruled) == (3, 1, 1)


async def test_requests_first_judged_outside_the_window_are_counted_and_left(
    store: EmbeddingStore,
) -> None:
    hours = [verdict(str(n), RED, POLICY, at=NOON + timedelta(hours=n)) for n in range(4)]
    window = Window(NOON + timedelta(hours=1), NOON + timedelta(hours=3))
    past = await past_of(records(*hours), [], store, window)
    assert past.verdicts["request_id"].to_pylist() == ["1", "2"]
    assert past.tally.outside == 2


async def test_what_cannot_be_read_is_counted_and_told(store: EmbeddingStore) -> None:
    [good] = records(RED)
    bad = [
        replace(good, value=b"{}"),
        replace(good, value=records(GREEN)[0].value),  # another's, under this key
        replace(good, key=None),
        Record("embeddings", 0, 9, None, None, unreadable="damaged"),
        records(replace(RED, rows=RED.rows * 0))[0],  # no length
    ]
    past = await past_of(records(verdict("a", RED, POLICY), b"?", b"{}"), [*bad, good], store)
    assert (past.tally.unreadable, past.tally.unreadable_embeddings) == (2, len(bad))
    assert past.embedded() == 1
    told = " ".join(past.tally.sentences())
    assert "2 records on the verdicts' topic" in told
    assert "5 records on the embeddings' topic" in told


async def test_a_tombstone_deletes_and_a_later_embedding_brings_back(store: EmbeddingStore) -> None:
    [kept] = records(RED)
    tombstone = replace(kept, value=None)
    said = records(verdict("a", RED, POLICY))
    assert (await past_of(said, [kept, tombstone], store)).embedded() == 0
    assert (await past_of(said, [kept, tombstone, kept], store)).embedded() == 1


async def test_verdicts_without_an_embedding_are_part_of_the_past(store: EmbeddingStore) -> None:
    said = [verdict("a", RED, POLICY), verdict("b", ErrorCode.HOST_UNAVAILABLE, POLICY)]
    past = await past_of(records(*said), [], store)
    assert (len(past), past.embedded()) == (2, 0)


async def test_the_decisions_of_one_policy_are_told_apart_from_those_of_another(
    store: EmbeddingStore,
) -> None:
    other = compiled(id="other")
    said = [verdict("a", RED, POLICY), verdict("b", RED, other), verdict("c", RED, other)]
    past = await past_of(records(*said), records(RED), store)
    assert past.policies() == {"other": 2, "test": 1}
    assert past.of_policy("other").verdicts["request_id"].to_pylist() == ["b", "c"]


async def test_an_empty_past_is_a_past(store: EmbeddingStore) -> None:
    past = await past_of([], [], store)
    assert (len(past), past.embedded(), past.policies()) == (0, 0, {})
