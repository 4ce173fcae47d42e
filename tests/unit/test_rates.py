"""How sure counted rates are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from worker.authoring.rates import (
    effective_number,
    fewest_to_show,
    lower,
    precision_at,
    rate,
    upper,
)

counted = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counted)
def test_the_interval_is_clopper_and_pearsons(of: tuple[int, int]) -> None:
    count, number = of
    exact = binomtest(count, number).proportion_ci(0.95, "exact")
    assert rate(count / number, number) == pytest.approx((count / number, exact.low, exact.high))


@given(counted)
def test_one_sided_bounds_are_those_of_scipys_test(of: tuple[int, int]) -> None:
    count, number = of
    share = np.array([count / number])
    above = binomtest(count, number, alternative="less").proportion_ci(0.95, "exact").high
    below = binomtest(count, number, alternative="greater").proportion_ci(0.95, "exact").low
    assert upper(share, number)[0] == pytest.approx(above)
    assert lower(share, number)[0] == pytest.approx(below)


@pytest.mark.parametrize(("target", "fewest"), [(0.001, 2995), (0.01, 299), (0.05, 59), (0.5, 5)])
def test_the_fewest_images_that_can_show_a_rate(target: float, fewest: int) -> None:
    assert fewest_to_show(target) == fewest
    assert upper(np.zeros(1), fewest)[0] <= target < upper(np.zeros(1), fewest - 1)[0]


def test_of_no_images_every_rate_is_possible() -> None:
    found = rate(0.0, 0)
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)


def test_equal_and_unlike_images_are_worth_their_number() -> None:
    assert effective_number(np.full(7, 0.3), np.arange(7)) == pytest.approx(7)


def test_near_duplicates_are_worth_one_and_unequal_weights_less() -> None:
    assert effective_number(np.ones(6), np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(3)
    assert effective_number(np.array([3.0, 1.0]), np.arange(2)) == pytest.approx(1.6)
    assert effective_number(np.ones(0), np.arange(0)) == 0


def test_precision_is_at_the_stated_prevalence() -> None:
    found = precision_at(np.array([0.5, 0.0]), np.array([0.1, 0.0]), 0.2)
    assert found.tolist() == pytest.approx([0.1 / (0.1 + 0.08), 0.0])
