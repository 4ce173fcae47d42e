"""The same image gets the same scores to the last bit, whatever is scored beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, fitted, policy_of, with_head
from worker.compiled import CompiledPolicy
from worker.policy import Calibration, Head
from worker.score import decide, logits, probabilities, score
from worker.types import Float16Rows

untimed = settings(deadline=None)

# one below, one at and one above what vector units take at a time; the last as a real model's
DIMENSIONS = (7, 32, 768)


def policy(dimension: int) -> CompiledPolicy:
    many = [f"prompt {number}" for number in range(40)]
    encoder = FakeEncoder(dimension, logit_scale=100.0)
    exceptions = ["pink", {"prompts": ["a drawing", "a toy"], "weight": 0.3}, "a poster"]
    written = policy_of(
        category("two", prompts=["red", "a rose"], contrast=["blue"]),
        category("many", prompts=many, aggregate="logmeanexp"),
        category("highest", prompts=many[:9], aggregate="max", mode="shadow"),
        category("average", prompts=[{"text": "a", "weight": 3}, *many[:17]], aggregate="mean"),
        category("one", prompts=["green"], contrast=["white"], block=0.9),
        category("dampened", exceptions=exceptions, frames={"at_least": 2}),
        category("blended", aggregate="mean", exceptions=["a poster"]),
        category("headed"),
        category("headed-and-dampened", exceptions=exceptions, frames={"at_least": 3}),
        contrast=["an ordinary photo", "food", "a landscape"],
        templates=["{}", "a photo of {}"],
    )
    written = with_head(written, "blended", head(encoder, 0.7))
    written = with_head(written, "headed", head(encoder), alone=True)
    written = with_head(written, "headed-and-dampened", head(encoder), alone=True)
    points = ((-9.0, 0.0), (0.0, 0.2), (1e-9, 0.7), (50.0, 1.0))
    isotonic = Calibration("", "isotonic", points=points)
    platt = Calibration("", scale=0.1, bias=-0.5)
    calibrations = {"blended": isotonic, "headed": platt, "dampened": isotonic}
    return compiled_of(fitted(written, encoder.info, calibrations), encoder)


def head(encoder: FakeEncoder, weight: float = 1.0) -> Head:
    rng = np.random.default_rng(int(weight * 100))
    vector = rng.standard_normal(encoder.info.dimension).astype(np.float32)
    return Head("h", "sha256:h", encoder.info.space, tuple(vector.tolist()), -0.5, weight)


POLICIES = {dimension: policy(dimension) for dimension in DIMENSIONS}


@st.composite
def unit_rows(draw: st.DrawFn, dimension: int, most: int = 70) -> Float16Rows:
    """Up to ``most`` unit rows as they are kept, some zero, some along an axis, some repeated."""
    count = draw(st.sampled_from([1, 2, 3, 8, 33, most]))
    rows = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal((count, dimension))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for row in draw(st.lists(st.integers(0, count - 1), max_size=3)):
        rows[row] = 0
    for row in draw(st.lists(st.integers(0, count - 1), max_size=3)):
        rows[row] = np.eye(dimension)[row % dimension] * draw(st.sampled_from([-1, 1]))
    for row in draw(st.lists(st.integers(0, count - 1), max_size=3)):
        rows[row] = rows[0]
    return rows.astype(np.float16)


def bits(compiled: CompiledPolicy, rows: Float16Rows) -> tuple[bytes, ...]:
    scores = score(compiled, rows)
    pairs = zip(scores.margins, scores.probabilities, strict=True)
    return tuple(margins.tobytes() + probabilities.tobytes() for margins, probabilities in pairs)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@untimed
@given(data=st.data())
def test_one_by_one_in_a_batch_and_in_any_order_give_the_same_bits(
    dimension: int, data: st.DataObject
) -> None:
    compiled = POLICIES[dimension]
    rows = data.draw(unit_rows(dimension))
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))

    together = bits(compiled, rows)

    assert tuple(bits(compiled, row[None])[0] for row in rows) == together
    assert bits(compiled, rows[order]) == tuple(together[place] for place in order)
    assert bits(compiled, rows[:cut]) + bits(compiled, rows[cut:]) == together


@pytest.mark.parametrize("dimension", DIMENSIONS)
@untimed
@given(data=st.data())
def test_the_layout_of_the_rows_in_memory_changes_no_bit(
    dimension: int, data: st.DataObject
) -> None:
    compiled = POLICIES[dimension]
    rows = data.draw(unit_rows(dimension))
    spread = np.zeros((len(rows), 2 * dimension + 1), dtype=np.float16)
    spread[:, 1::2] = rows

    for laid_out in (np.asfortranarray(rows), spread[:, 1::2], rows[::-1][::-1]):
        assert bits(compiled, laid_out) == bits(compiled, rows)


def test_batches_longer_than_a_block_give_the_same_bits() -> None:
    rows = np.random.default_rng(5).standard_normal((1100, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    assert bits(POLICIES[32], rows) == tuple(bits(POLICIES[32], row[None])[0] for row in rows)


@untimed
@given(rows=unit_rows(768, most=3))
def test_cosines_are_summed_without_any_rounding(rows: Float16Rows) -> None:
    compiled = compiled_of(
        policy_of(category(prompts=["one"], contrast=["other"], aggregate="max")),
        FakeEncoder(768, logit_scale=100.0),
    )
    exact = [
        [100.0 * math.fsum(a * b for a, b in zip(row, vector, strict=True)) for vector in vectors]
        for row in rows.tolist()
        for vectors in [compiled.vectors.T.tolist()]
    ]
    margins = score(compiled, rows).margins[:, 0]
    assert margins.tolist() == [one - other for one, other in exact]


@untimed
@given(rows=unit_rows(768, most=3))
def test_products_with_a_head_are_summed_without_any_rounding(rows: Float16Rows) -> None:
    compiled = POLICIES[768]
    found = logits(compiled, rows)
    for column in range(len(compiled.texts), found.shape[1]):
        place = compiled.vector_of[column]
        unit = compiled.vectors[:, place].tolist()
        length, bias = compiled.gains[place], compiled.offsets[place]
        exact = [math.fsum(a * b for a, b in zip(row, unit, strict=True)) for row in rows.tolist()]
        assert found[:, column].tolist() == [product * length + bias for product in exact]


finite = st.floats(width=16, allow_nan=False, allow_infinity=False)


@untimed
@given(rows=arrays(np.float16, st.tuples(st.integers(1, 5), st.just(32)), elements=finite))
def test_scores_are_finite_and_the_same_bits_for_every_finite_input(rows: Float16Rows) -> None:
    compiled = POLICIES[32]
    scores = score(compiled, rows)

    assert np.isfinite(scores.margins).all()
    assert ((scores.probabilities >= 0) & (scores.probabilities <= 1)).all()
    assert tuple(bits(compiled, row[None])[0] for row in rows) == bits(compiled, rows)


@untimed
@given(
    margin_scale=st.floats(1e-6, 1e6),
    bias=st.floats(-1e6, 1e6),
    rows=unit_rows(32, most=3),
)
def test_no_calibration_makes_a_probability_overflow(
    margin_scale: float, bias: float, rows: Float16Rows
) -> None:
    compiled = POLICIES[32]
    scale: NDArray[Any] = np.full(len(compiled.categories), margin_scale)
    extreme = replace(compiled, scale=scale, bias=np.full(len(compiled.categories), bias))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        probabilities = score(extreme, rows).probabilities
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@untimed
@given(rows=unit_rows(32, most=9), seed=st.integers(0, 2**32))
def test_the_order_of_an_images_rows_changes_no_decision(rows: Float16Rows, seed: int) -> None:
    compiled = POLICIES[32]
    order = np.random.default_rng(seed).permutation(len(rows))
    one, other = decide(compiled, rows, None), decide(compiled, rows[order], None)

    assert (one.decision, one.decided_by) == (other.decision, other.decided_by)
    for here, there in zip(one.categories, other.categories, strict=True):
        assert (here.margin, here.probability) == (there.margin, there.probability)


@untimed
@given(
    steps=st.lists(st.tuples(st.floats(1e-9, 1e6), st.floats(0, 1)), min_size=2, max_size=9),
    first=st.floats(-1e5, 1e5),
    rows=unit_rows(32, most=3),
)
def test_isotonic_probabilities_stay_within_their_points_and_rise_with_the_margin(
    steps: list[tuple[float, float]], first: float, rows: Float16Rows
) -> None:
    margins = np.unique(first + np.cumsum([width for width, _ in steps]))
    reached = np.sort([probability for _, probability in steps])[: len(margins)]
    compiled = replace(POLICIES[32], points={0: (margins, reached)})
    asked = np.concatenate([score(compiled, rows).margins[:, 0], margins, margins + 1e-12])

    spread = np.zeros((len(asked), len(compiled.categories)))
    spread[:, 0] = np.sort(asked)
    found = probabilities(compiled, spread)[:, 0]

    assert ((found >= reached[0]) & (found <= reached[-1])).all()
    assert (np.diff(found) >= -1e-12).all()


@untimed
@given(data=st.data())
def test_prompts_in_any_order_and_number_of_copies_give_the_same_bits(data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.sampled_from("abcdefghij"), min_size=1))
    again = data.draw(st.permutations(prompts + data.draw(st.lists(st.sampled_from(prompts)))))
    rows = data.draw(unit_rows(32, most=3))
    encoder = FakeEncoder(32)

    once, copied = (
        compiled_of(policy_of(category(prompts=texts)), encoder) for texts in (prompts, again)
    )
    assert bits(once, rows) == bits(copied, rows)
