"""From labelled margins to calibrations, by three methods."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.authoring.examples import Floats, Labels
from worker.authoring.fits import at_prevalence, fit, probability, rounded
from worker.authoring.platt import log_odds, sigmoid
from worker.policy import Calibration, Method, margin_digest
from worker.score import probabilities

METHODS = get_args(Method)


def drawn(count: int = 4000, seed: int = 5) -> tuple[Floats, Labels, Floats]:
    random = np.random.default_rng(seed)
    margins = random.normal(0, 3, count)
    return margins, random.random(count) < sigmoid(0.8 * margins - 2.0), np.ones(count)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_near_those_that_labels_were_drawn_with(method: Method) -> None:
    fitted = fit(method, *drawn(), fitted_for="x")
    assert fitted is not None and fitted.method == method
    xs = np.linspace(-6, 6, 50)
    assert np.abs(probability(fitted, xs) - sigmoid(0.8 * xs - 2.0)).max() < 0.12


@settings(max_examples=50, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    count=st.integers(4, 200),
    seed=st.integers(0, 1000),
    live=st.floats(0.001, 0.999),
)
def test_probabilities_rise_with_the_margin_and_never_reach_0_or_1(
    method: Method, count: int, seed: int, live: float
) -> None:
    margins, labels, weights = drawn(count, seed)
    if labels.all() or not labels.any():
        return
    fitted = fit(method, margins, labels, weights, "x")
    if fitted is None:
        return
    fitted = rounded(at_prevalence(fitted, float(labels.mean()), live))
    found = probability(fitted, np.sort(margins))
    assert (np.diff(found) >= 0).all()
    assert (found > 0).all() and (found < 1).all()


def test_isotonic_points_are_few_and_can_be_read_back() -> None:
    fitted = fit("isotonic", *drawn(), fitted_for="x")
    assert fitted is not None
    xs, ys = np.array(rounded(fitted).points).T
    assert 2 <= len(xs) <= 20
    assert (np.diff(xs) > 0).all() and (np.diff(ys) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_margins_that_are_no_higher_for_positives_have_no_fit(method: Method) -> None:
    margins, labels, weights = drawn(400)
    assert fit(method, -margins, labels, weights, "x") is None


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_one_kind_have_no_fit(method: Method) -> None:
    margins, _, weights = drawn(40)
    with pytest.raises(ValueError, match="positives and negatives"):
        fit(method, margins, np.ones(40, dtype=np.bool_), weights, "x")


@pytest.mark.parametrize("method", METHODS)
def test_margins_that_are_not_finite_have_no_fit(method: Method) -> None:
    margins, labels, weights = drawn(40)
    margins[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        fit(method, margins, labels, weights, "x")


@pytest.mark.parametrize("method", METHODS)
def test_another_prevalence_moves_the_log_odds_by_the_priors_difference(method: Method) -> None:
    margins, labels, weights = drawn()
    fitted = fit(method, margins, labels, weights, "x")
    assert fitted is not None
    at = np.array([x for x, _ in fitted.points]) if fitted.points else margins
    before = probability(fitted, at)
    after = probability(at_prevalence(fitted, 0.3, 0.01), at)
    moved = np.log(after / (1 - after)) - np.log(before / (1 - before))
    assert moved == pytest.approx(log_odds(0.01) - log_odds(0.3))


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("", "platt", scale=0.7, bias=-2.0),
        Calibration("", "temperature", scale=0.7, bias=-1.0),
        Calibration("", "isotonic", points=((-2.0, 0.01), (0.0, 0.3), (4.0, 0.3), (5.0, 0.9))),
    ],
    ids=lambda calibration: calibration.method,
)
def test_probabilities_are_those_that_the_worker_gives(calibration: Calibration) -> None:
    policy = policy_of(category())
    digest = margin_digest(policy, policy.categories[0], FakeEncoder().info)
    fitted = replace(calibration, fitted_for=digest)
    calibrated = replace(policy, categories=(replace(policy.categories[0], calibration=fitted),))
    margins = np.linspace(-10, 10, 101)
    found = probabilities(compiled_of(calibrated, FakeEncoder()), margins[:, None])[:, 0]
    assert probability(fitted, margins) == pytest.approx(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_the_weights_does_not_matter(method: Method, unit: float) -> None:
    margins, labels, weights = drawn(400)
    fitted = fit(method, margins, labels, weights, "x")
    in_unit = fit(method, margins, labels, unit * weights, "x")
    assert fitted is not None and in_unit is not None
    assert probability(in_unit, margins) == pytest.approx(probability(fitted, margins), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_margins_that_are_all_the_same_tell_nothing(method: Method) -> None:
    labels = np.arange(400) < 150
    assert fit(method, np.full(400, 0.3), labels, np.ones(400), "x") is None
