"""Platt and temperature scaling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from worker.authoring.examples import Floats, Labels
from worker.authoring.platt import fit_platt, fit_temperature, log_odds, sigmoid


def drawn(scale: float, bias: float, count: int = 4000) -> tuple[Floats, Labels]:
    """Margins, and labels that follow them with the given scale and bias."""
    random = np.random.default_rng(5)
    margins = random.normal(0, 2, count)
    return margins, random.random(count) < sigmoid(scale * margins + bias)


labelled = st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[Floats, Labels]:
    return np.array([m for m, _ in pairs]), np.array([label for _, label in pairs])


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.4, -3.0), (3.0, 2.0)])
def test_the_fit_finds_the_scale_and_bias_that_labels_were_drawn_with(
    scale: float, bias: float
) -> None:
    assert fit_platt(*drawn(scale, bias)) == pytest.approx((scale, bias), abs=0.3)


def test_the_fit_is_the_least_of_its_loss_as_a_general_solver_finds_it() -> None:
    margins, labels = drawn(0.7, -2.0, 300)
    positives, negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(solution: Floats) -> float:
        z = solution[0] * margins + solution[1]
        return float((np.logaddexp(0, z) - targets * z).sum())

    assert fit_platt(margins, labels) == pytest.approx(minimize(loss, np.zeros(2)).x, abs=1e-3)


def test_margins_that_separate_the_labels_have_a_finite_fit() -> None:
    fitted = fit_platt(
        np.array([-2.0, -1.0, 1.0, 2.0] * 10), np.array([False, False, True, True] * 10)
    )
    assert 0 < fitted.scale < 100
    assert fitted.probabilities(np.array([2.0]))[0] < 1


@given(labelled)
def test_any_labelled_margins_have_a_finite_fit(pairs: list[tuple[float, bool]]) -> None:
    margins, labels = arrays(pairs)
    fitted = fit_platt(margins, labels)
    assert np.isfinite(fitted).all()
    assert np.isfinite(fitted.probabilities(margins)).all()


@pytest.mark.parametrize("fit", [fit_platt, fit_temperature])
@pytest.mark.parametrize(
    ("margins", "labels"),
    [([1.0, 2.0], [True, True]), ([1.0, 2.0], [False, False]), ([np.nan, 2.0], [True, False])],
)
def test_labels_of_one_kind_and_margins_that_are_not_finite_have_no_fit(
    fit: Callable[[Floats, Labels], object], margins: list[float], labels: list[bool]
) -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        fit(np.array(margins), np.array(labels))


def test_shifting_the_prevalence_gives_what_fitting_on_such_data_gives() -> None:
    margins, labels = drawn(1.0, -1.0, 40_000)
    share = float(labels.mean())
    kept = ~labels | (np.random.default_rng(2).random(len(labels)) < 0.1)
    rarer = float(labels[kept].mean())
    shifted = fit_platt(margins, labels).at_prevalence(share, rarer)
    assert shifted == pytest.approx(fit_platt(margins[kept], labels[kept]), abs=0.1)


def test_a_weight_counts_as_so_many_images() -> None:
    margins, labels = drawn(0.7, -1.0, 300)
    weights = np.where(margins > 0, 3.0, 1.0)
    repeated = np.repeat(np.arange(300), weights.astype(int))
    assert fit_platt(margins, labels, weights) == pytest.approx(
        fit_platt(margins[repeated], labels[repeated])
    )


def test_temperature_finds_the_scale_and_takes_the_bias_from_the_share() -> None:
    margins, labels = drawn(0.5, 0.0, 20_000)
    kept = ~labels | (np.random.default_rng(2).random(len(labels)) < 0.1)
    fitted = fit_temperature(margins[kept], labels[kept])
    assert fitted.scale == pytest.approx(0.5, abs=0.05)
    assert fitted.bias == pytest.approx(log_odds(float(labels[kept].mean())))


@given(st.floats(-1e300, 1e300))
def test_sigmoid_never_overflows(z: float) -> None:
    with np.errstate(over="raise"):
        assert 0 <= sigmoid(np.array([z]))[0] <= 1
