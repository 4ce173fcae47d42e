"""Precision and recall from people's words, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from worker.past.feedback import Judged
from worker.past.live_rates import LiveRates, live_rates, share
from worker.schema import Action

ACTIONS: list[Action] = ["allow", "review", "block"]


def images(action: Action, shows: int = 0, others: int = 0, weight: float = 1.0) -> list[Judged]:
    return [
        Judged("policy", "cat", action, answer, weight)
        for answer, count in ((True, shows), (False, others))
        for _ in range(count)
    ]


def rates(*judged: list[Judged]) -> LiveRates:
    [found] = live_rates([one for group in judged for one in group])
    return found


def test_precision_is_the_share_that_people_agreed_with() -> None:
    found = rates(images("block", shows=9, others=1), images("review", shows=3, others=7))
    precision = {action: each and each.value for action, each in found.precision.items()}
    assert precision == {"review": 12 / 20, "block": 9 / 10}


def test_recall_is_the_share_of_what_people_found_that_was_acted_on() -> None:
    found = rates(images("block", shows=6), images("review", shows=3), images("allow", shows=3))
    recall = {action: each and each.value for action, each in found.recall.items()}
    assert recall == {"review": 9 / 12, "block": 6 / 12}


def test_without_weights_the_interval_is_that_of_jeffreys() -> None:
    found = rates(images("block", shows=18, others=2)).precision["block"]
    assert found is not None
    assert found[1:] == pytest.approx(beta.ppf([0.025, 0.975], 18.5, 2.5))


def test_an_interval_around_all_or_nothing_ends_there() -> None:
    every = rates(images("block", shows=20)).precision["block"]
    none = rates(images("block", others=20)).precision["block"]
    assert every is not None
    assert none is not None
    assert (every.value, every.high, none.value, none.low) == (1.0, 1.0, 0.0, 0.0)
    assert every.low == pytest.approx(1 - none.high)
    assert 0.8 < every.low < 0.9


def test_recall_is_unknown_where_nobody_looked_at_what_was_let_through() -> None:
    found = rates(images("block", shows=5), images("review", shows=5))
    assert list(found.recall.values()) == [None, None]


def test_rates_are_unknown_where_nothing_could_tell_them() -> None:
    found = rates(images("allow", others=5))
    assert list(found.precision.values()) == [None, None]
    assert list(found.recall.values()) == [None, None]


def test_an_image_stands_for_as_many_as_were_not_looked_at() -> None:
    found = rates(
        images("block", shows=90), images("allow", shows=1, others=99, weight=10.0)
    ).recall["block"]
    assert found is not None
    assert found.value == 0.9


def test_a_thin_sample_that_found_nothing_missed_does_not_prove_that_nothing_is() -> None:
    thorough, thin = (
        rates(images("block", shows=100), images("allow", others=100, weight=weight)).recall[
            "block"
        ]
        for weight in (1.0, 100.0)
    )
    assert thorough is not None
    assert thin is not None
    assert thorough.value == thin.value == 1.0
    assert thorough.low > 0.95
    assert thin.low < 0.4


def test_images_are_counted_by_what_was_said_of_them_and_what_they_show() -> None:
    found = rates(images("block", shows=2, others=1), images("allow", others=4, weight=50.0))
    assert found.judged == {("block", True): 2, ("block", False): 1, ("allow", False): 4}


def test_each_policy_and_category_has_rates_of_its_own() -> None:
    judged = [Judged(p, c, "block", True, 1.0) for p in ("b", "a") for c in ("y", "x")]
    assert [(each.policy, each.category) for each in live_rates(judged)] == [
        ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")
    ]  # fmt: skip


WEIGHTS = st.lists(st.sampled_from([1.0, 2.0, 10.0, 100.0, 1e4]), max_size=30)


@given(a=WEIGHTS, b=WEIGHTS, typical=st.tuples(*[st.sampled_from([1.0, 20.0, 1e4])] * 2))
def test_the_estimate_lies_within_its_interval(
    a: list[float], b: list[float], typical: tuple[float, float]
) -> None:
    if a or b:
        found = share(np.array(a), np.array(b), *typical)
        assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("true_recall", "rate"), [(0.9, 1.0), (0.9, 0.05), (0.98, 0.05)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(
    true_recall: float, rate: float
) -> None:
    """Of 300 images that show it, those missed are found by a sample of what was let through."""
    random = np.random.default_rng(4)
    held, runs = 0, 400
    for _ in range(runs):
        missed = random.binomial(300, 1 - true_recall)
        caught, found = 300 - missed, random.binomial(missed, rate)
        interval = share(np.ones(caught), np.full(found, 1 / rate), 1.0, 1 / rate)
        held += interval.low <= true_recall <= interval.high
    assert held / runs > 0.92
