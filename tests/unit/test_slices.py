"""Slices: differences that are there are found, and noise is not taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fitted import example
from worker.authoring.examples import Example
from worker.authoring.rates import wilson
from worker.authoring.slices import SMALLEST, Flagged, facets, holm, slices


def flagged(examples: list[Example], wrong: list[bool], id: str = "colour.red") -> Flagged:
    """None of them shows it; those that are wrong were flagged."""
    return Flagged(
        id, [facets(one) for one in examples], np.zeros(len(examples), dtype=bool), np.array(wrong)
    )


def some(number: int, **keys: Any) -> list[Example]:
    return [example({}, **keys) for _ in range(number)]


def test_source_that_is_worse_than_the_others_is_found() -> None:
    examples = some(100, source="a") + some(100, source="b")
    [one] = slices([flagged(examples, [n < 30 for n in range(200)])])
    assert one.differs
    assert (one.facet, one.wrong, one.images, one.others_wrong, one.others) == (
        *("source", 0, 100),
        *(30, 100),
    )


def test_misses_are_compared_among_those_that_show_it() -> None:
    examples = some(100, greyscale=True) + some(100, greyscale=False)
    labels = np.ones(200, dtype=bool)
    [one] = slices(
        [Flagged("colour.red", [facets(one) for one in examples], labels, np.arange(200) >= 50)]
    )
    assert (one.error, one.differs, one.wrong + one.others_wrong) == ("misses", True, 50)


def test_of_two_values_one_comparison_is_enough() -> None:
    examples = some(50, greyscale=True) + some(50, greyscale=False)
    assert len(slices([flagged(examples, [False] * 100)])) == 1


def test_small_slice_is_left_out() -> None:
    examples = some(100, source="a") + some(SMALLEST - 1, source="b")
    wrong = [n >= 100 for n in range(len(examples))]
    assert slices([flagged(examples, wrong)]) == []


def test_images_of_which_something_is_unknown_are_on_neither_side() -> None:
    examples = some(40, source="a") + some(40, source="b") + some(40)
    [one] = slices([flagged(examples, [True] * 120)])
    assert one.images + one.others == 80


def test_noise_over_many_categories_is_not_taken_for_a_difference() -> None:
    rng = np.random.default_rng(0)
    examples = [
        example({}, source=f"s{n % 6}", greyscale=bool(n % 2), size=(100 + n % 600, 900))
        for n in range(600)
    ]
    judged = [flagged(examples, list(rng.random(600) < 0.1), f"c{n}") for n in range(30)]
    found = slices(judged)
    assert len(found) > 200
    assert not [one for one in found if one.differs]


def test_facets_name_source_size_format_and_colour() -> None:
    assert facets(example({}, source="shop", greyscale=True, size=(200, 3000))) == {
        "source": "shop",
        "shorter side": "128 to 255 px",
        "format": "jpeg",
        "colour": "greyscale",
    }


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_and_lowers_none(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[n] for n in order] == sorted(corrected)


@given(trials=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilson_holds_its_estimate_and_stays_within_0_and_1(trials: int, share: float) -> None:
    estimate = wilson(round(share * trials), trials)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_wilson_is_the_interval_that_scipy_gives() -> None:
    from scipy.stats import binomtest

    theirs = binomtest(7, 50).proportion_ci(method="wilson")
    assert wilson(7, 50) == pytest.approx((0.14, theirs.low, theirs.high))


def test_of_nothing_everything_is_possible() -> None:
    assert wilson(0, 0)[1:] == (0.0, 1.0)
