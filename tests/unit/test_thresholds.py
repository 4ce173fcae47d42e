"""Thresholds, solved from targets and measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.authoring.platt import sigmoid
from worker.authoring.rates import lower, precision_at, upper
from worker.authoring.results import ThresholdReport
from worker.authoring.thresholds import Scored, Unsolvable, reports, solved
from worker.policy import Category, Target, Targets, Thresholds

ALIKE = "images that show it and others are too much alike"


def scored(
    positives: int, negatives: int, *, apart: float = 4.0, seed: int = 3, **keys: object
) -> Scored:
    random = np.random.default_rng(seed)
    z = np.concatenate([random.normal(apart, 2, positives), random.normal(-apart, 2, negatives)])
    count = positives + negatives
    given = Scored(
        probabilities=sigmoid(z),
        labels=np.arange(count) < positives,
        weights=np.ones(count),
        groups=np.arange(count),
        prevalence=None,
    )
    return replace(given, **keys)  # type: ignore[arg-type]


def category(thresholds: Thresholds, targets: Targets | None = None) -> Category:
    return Category(
        *("c", None, "", (), (), "logmeanexp", None, thresholds, "enforce", False),
        targets=targets or Targets(),
    )


targets = st.builds(
    Target, st.sampled_from(["fpr", "recall", "precision"]), st.floats(0.005, 0.995)
)


@given(target=targets, seed=st.integers(0, 50), apart=st.floats(0, 4))
def test_a_solved_target_is_kept_on_the_safe_side_of_its_bound(
    target: Target, seed: int, apart: float
) -> None:
    data = scored(150, 600, apart=apart, seed=seed, prevalence=0.05)
    try:
        at = np.array([solved(target, data)])
    except Unsolvable:
        return
    assert 0 <= at[0] <= 1
    fpr, recall = data.shares(at, ~data.labels), data.shares(at, data.labels)
    if target.rate == "fpr":
        assert upper(fpr, 600)[0] <= target.value
    elif target.rate == "recall":
        assert lower(recall, 150)[0] >= target.value
    else:
        shown, alarms = lower(recall, 150, 0.025), upper(fpr, 600, 0.025)
        assert precision_at(shown, alarms, 0.05)[0] >= target.value


def test_a_target_is_kept_on_images_that_were_not_looked_at() -> None:
    """The promise is 95 %: of 200 samples, at most 18 break it but once in a thousand times."""
    far = scored(1000, 200_000, apart=1.0, seed=1)
    broken = 0
    for seed in range(200):
        at = solved(Target("fpr", 0.05), scored(50, 300, apart=1.0, seed=seed + 2))
        broken += far.shares(np.array([at]), ~far.labels)[0] > 0.05
    assert broken <= 18


def test_the_lowest_threshold_that_keeps_an_fpr_is_found() -> None:
    data = scored(100, 1000)
    at = solved(Target("fpr", 0.02), data)
    below = data.probabilities[data.probabilities < at].max()
    assert upper(data.shares(np.array([below]), ~data.labels), 1000)[0] > 0.02


def test_a_threshold_has_no_more_digits_than_it_needs() -> None:
    probabilities = np.array([0.123456, 0.987654] * 40)
    data = replace(scored(40, 40), probabilities=probabilities, labels=probabilities > 0.5)
    assert solved(Target("recall", 0.9), data) == 0.98
    assert solved(Target("fpr", 0.1), data) == 0.98


@pytest.mark.parametrize(
    ("target", "positives", "negatives", "sentence"),
    [
        (
            Target("fpr", 0.001),
            100,
            41,
            "41 negatives cannot show an FPR of 0.1\N{NARROW NO-BREAK SPACE}%: at least 2,995 are "
            "needed",
        ),
        (
            Target("recall", 0.9),
            20,
            500,
            "20 positives cannot show a recall of 90\N{NARROW NO-BREAK SPACE}%: at least 29 are "
            "needed",
        ),
        (
            Target("precision", 0.9),
            100,
            500,
            "500 negatives cannot show a precision of 90\N{NARROW NO-BREAK SPACE}% where "
            "1.0\N{NARROW NO-BREAK SPACE}% is positive: at least ",
        ),
    ],
)
def test_a_target_that_the_data_cannot_support_is_refused_with_the_number_they_need(
    target: Target, positives: int, negatives: int, sentence: str
) -> None:
    with pytest.raises(Unsolvable) as refused:
        solved(target, scored(positives, negatives, prevalence=0.01))
    assert str(refused.value).startswith(sentence)


def test_the_number_that_is_said_to_be_needed_is_enough() -> None:
    target = Target("precision", 0.9)
    with pytest.raises(Unsolvable) as refused:
        solved(target, scored(100, 500, apart=30, prevalence=0.01))
    needed = int(str(refused.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    assert solved(target, scored(100, needed, apart=30, prevalence=0.01)) > 0
    with pytest.raises(Unsolvable):
        solved(target, scored(100, needed - 1, apart=30, prevalence=0.01))


def test_near_duplicates_count_once_towards_what_is_needed() -> None:
    data = scored(50, 400, groups=np.arange(450) // 2)
    with pytest.raises(Unsolvable, match="400 negatives, worth 200 unlike ones of equal weight,"):
        solved(Target("fpr", 0.01), data)


def test_a_category_that_tells_nothing_has_no_threshold_of_high_precision() -> None:
    with pytest.raises(Unsolvable, match=ALIKE):
        solved(Target("precision", 0.9), scored(300, 1000, apart=0.0, prevalence=0.1))


def test_a_precision_without_a_prevalence_is_refused() -> None:
    with pytest.raises(Unsolvable, match="state it with --prevalence"):
        solved(Target("precision", 0.5), scored(100, 100))


def test_thresholds_are_measured_as_they_stand() -> None:
    review, block = reports(category(Thresholds(0.3, 0.9)), scored(100, 400))
    assert (review.action, review.value, block.action, block.value) == ("review", 0.3, "block", 0.9)
    for report in (review, block):
        assert report.fpr and report.recall and report.precision is None
        assert report.fpr.low <= report.fpr.value <= report.fpr.high
    assert review.recall and block.recall and review.recall.value >= block.recall.value


def test_precision_is_told_where_a_prevalence_is_stated() -> None:
    [report] = reports(category(Thresholds(0.3, None)), scored(100, 400, prevalence=0.01))
    assert report.precision
    assert report.precision.low < report.precision.value < report.precision.high


def both(review: Target | float, block: Target | float) -> tuple[ThresholdReport, ...]:
    values = [of if isinstance(of, float) else None for of in (review, block)]
    wanted = [of if isinstance(of, Target) else None for of in (review, block)]
    return reports(category(Thresholds(*values), Targets(*wanted)), scored(300, 1000, apart=2.0))


def test_a_recall_that_a_higher_threshold_would_keep_is_reviewed_from_where_others_block() -> None:
    review, block = both(Target("recall", 0.3), Target("fpr", 0.2))
    assert review.value == block.value
    assert not review.refused and not block.refused


def test_a_block_that_would_be_below_review_is_raised_to_it() -> None:
    review, block = both(0.99, Target("fpr", 0.3))
    assert (review.value, block.value) == (0.99, 0.99)


def test_thresholds_in_the_wrong_order_that_cannot_give_way_are_refused() -> None:
    review, block = both(Target("fpr", 0.01), 0.01)
    assert review.refused and "nothing would be reviewed" in review.refused
    assert block.refused is None and block.value == 0.01
