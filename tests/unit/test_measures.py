"""AUROC, average precision and calibration error, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from worker.authoring.examples import Floats, Labels
from worker.authoring.measures import (
    auroc,
    average_precision,
    expected_calibration_error,
    log_loss,
    measured,
)
from worker.authoring.platt import sigmoid

# few different scores, so that many tie
labelled = st.lists(
    st.tuples(st.integers(-5, 5), st.booleans(), st.integers(1, 4)), min_size=2, max_size=60
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)


def drawn(count: int, scale: float = 1.0) -> tuple[Floats, Floats, Labels]:
    """Margins, the probabilities that a scale makes of them, and labels by a scale of 1."""
    random = np.random.default_rng(5)
    margins = random.normal(-1, 2, count)
    return margins, sigmoid(scale * margins), random.random(count) < sigmoid(margins)


@given(labelled)
def test_auroc_is_sklearns_ties_included(rows: list[tuple[int, bool, int]]) -> None:
    scores, labels = np.array([s for s, _, _ in rows], float), np.array([y for _, y, _ in rows])
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@given(labelled)
def test_average_precision_is_sklearns_weights_included(rows: list[tuple[int, bool, int]]) -> None:
    scores, labels = np.array([s for s, _, _ in rows], float), np.array([y for _, y, _ in rows])
    weights = np.array([w for _, _, w in rows], float)
    assert average_precision(scores, labels, weights) == pytest.approx(
        average_precision_score(labels, scores, sample_weight=weights)
    )


def test_measures_of_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        auroc(np.array([1.0, 2.0]), np.array([True, True]))
    with pytest.raises(ValueError, match="needs positives"):
        average_precision(np.array([1.0, 2.0]), np.array([False, False]))


def test_true_probabilities_have_a_small_calibration_error_and_bold_ones_a_large() -> None:
    _, true, labels = drawn(20_000)
    _, bold, _ = drawn(20_000, scale=8.0)
    assert expected_calibration_error(true, labels) < 0.02
    assert expected_calibration_error(bold, labels) > 0.1


def test_calibration_error_of_two_bins_by_hand() -> None:
    probabilities = np.array([0.1, 0.3, 0.6, 0.8])
    labels = np.array([False, True, True, True])
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(0.3)


def test_calibration_error_counts_an_image_by_its_weight() -> None:
    probabilities, labels = np.array([0.2, 0.9]), np.array([False, False])
    weights = np.array([1.0, 3.0])
    assert expected_calibration_error(probabilities, labels, weights, bins=1) == pytest.approx(
        (0.2 + 3 * 0.9) / 4
    )


def test_log_loss_by_hand() -> None:
    loss = log_loss(np.array([0.25, 0.5]), np.array([True, False]), np.array([1.0, 3.0]))
    assert loss == pytest.approx((np.log(4) + 3 * np.log(2)) / 4)


def test_intervals_hold_what_was_measured_and_shrink_with_the_number_of_images() -> None:
    widths = []
    for count in (200, 3200):
        margins, probabilities, labels = drawn(count)
        weights, groups = np.ones(count), np.arange(count)
        found = measured(margins, probabilities, labels, weights, groups)
        assert all(one.low <= one.value <= one.high for one in found)
        assert found.auroc.value == pytest.approx(auroc(margins, labels))
        assert found.ece.value == pytest.approx(expected_calibration_error(probabilities, labels))
        widths.append([one.high - one.low for one in found])
    assert all(many < few for few, many in zip(*widths, strict=True))


def test_images_seen_twice_make_nothing_surer() -> None:
    margins, probabilities, labels = drawn(300)
    once = measured(margins, probabilities, labels, np.ones(300), np.arange(300))
    twice = np.tile(np.arange(300), 2)
    again = measured(margins[twice], probabilities[twice], labels[twice], np.ones(600), twice)
    assert again.auroc == pytest.approx(once.auroc)
    assert again.average_precision == pytest.approx(once.average_precision)


def test_the_interval_of_the_calibration_error_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of probabilities that are too low by 0.7 in log-odds, on images drawn whatever they show."""
    random = np.random.default_rng(6)
    many = random.normal(-1, 2, 200_000)
    truth = float(np.abs(sigmoid(many) - sigmoid(many + 0.7)).mean())
    held, runs, count = 0, 40, 600
    for _ in range(runs):
        z = random.normal(-1, 2, count)
        labels = random.random(count) < sigmoid(z + 0.7)
        found = measured(z, sigmoid(z), labels, np.ones(count), np.arange(count)).ece
        held += found.low <= truth <= found.high
    assert held / runs >= 0.85
