"""A leak is told from noise."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.trend import Trend, trend

SECONDS = np.arange(0, 1800, 5.0)


def of(values: np.ndarray, allowed: float = 1.0) -> Trend:
    return trend("memory", "MiB", list(SECONDS), list(values), allowed)


def test_the_slope_of_a_line_is_told_by_the_hour() -> None:
    found = of(100 + SECONDS / 3600 * 8)
    assert np.allclose([found.per_hour, found.growth], [8, 8 * SECONDS[-1] / 3600])


def test_what_never_moves_is_flat_although_next_to_nothing_is_allowed() -> None:
    assert of(np.full(len(SECONDS), 100.0), allowed=1e-6).flat


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 5))
def test_a_leak_beyond_what_is_allowed_shows_through_noise(seed: int, noise: float) -> None:
    chance = np.random.default_rng(seed)
    leak = 10 * noise * SECONDS / SECONDS[-1]
    assert not of(100 + leak + chance.normal(0, noise, len(SECONDS))).flat


def test_noise_alone_is_no_leak_19_times_of_20() -> None:
    chance = np.random.default_rng(0)
    told = [of(chance.normal(100, 3, len(SECONDS)), allowed=0).flat for _ in range(200)]
    assert np.mean(told) >= 0.95


def test_a_walk_that_comes_back_is_held_to_a_wider_interval_than_noise() -> None:
    chance = np.random.default_rng(0)
    steps = chance.normal(0, 1, len(SECONDS))
    walk = np.convolve(steps, 0.9 ** np.arange(40))[: len(SECONDS)]
    shuffled = chance.permutation(walk)
    wide, narrow = of(100 + walk), of(100 + shuffled)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
