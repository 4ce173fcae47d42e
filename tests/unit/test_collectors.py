"""Gauges that are read at a scrape, histograms of many values at once, labels with a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from structlog.testing import capture_logs

from worker.collectors import Known, Probabilities, Reading, Samples

BOUNDS = (0.05, 0.5, 1.0)
probabilities = st.floats(0, 1) | st.sampled_from(BOUNDS)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def depth(registry: CollectorRegistry) -> Reading:
    return Reading("depth_metres", "How deep.", ["well"], registry=registry)


# ---------------------------------------------------------------- readings


def test_reading_is_asked_for_at_each_scrape(registry: CollectorRegistry, depth: Reading) -> None:
    rising = itertools.count(1)
    with depth.of(lambda: [(("north",), next(rising))]):
        told = [registry.get_sample_value("depth_metres", {"well": "north"}) for _ in range(2)]
    assert told == [1, 2]


def test_reading_of_what_is_gone_is_absent(registry: CollectorRegistry, depth: Reading) -> None:
    with depth.of(lambda: [(("north",), 1)]):
        pass
    [family] = registry.collect()
    assert (family.name, family.samples) == ("depth_metres", [])


def test_reading_goes_on_where_another_ends(registry: CollectorRegistry, depth: Reading) -> None:
    with depth.of(lambda: [(("north",), 1)]):
        with depth.of(lambda: [(("south",), 2)]):
            pass
        [family] = registry.collect()
    assert [(each.labels, each.value) for each in family.samples] == [({"well": "north"}, 1)]


def test_reading_that_fails_costs_its_own_values_alone(
    registry: CollectorRegistry, depth: Reading
) -> None:
    def broken() -> Samples:
        yield ("north",), 1
        raise RuntimeError("the rope is too short")

    with capture_logs() as logs, depth.of(broken), depth.of(lambda: [(("south",), 2)]):
        assert registry.get_sample_value("depth_metres", {"well": "south"}) == 2
    assert [(line["event"], line["metric"]) for line in logs] == [
        ("metric_not_read", "depth_metres")
    ]


def test_of_two_readings_of_the_same_the_later_counts(
    registry: CollectorRegistry, depth: Reading
) -> None:
    with depth.of(lambda: [(("north",), 1)]), depth.of(lambda: [(("north",), 2)]):
        [family] = registry.collect()
    assert [each.value for each in family.samples] == [2]


def test_name_is_taken_once(registry: CollectorRegistry, depth: Reading) -> None:
    with pytest.raises(ValueError, match="depth_metres"):
        Reading("depth_metres", "Again.", registry=registry)


# ---------------------------------------------------------------- probabilities


@given(st.lists(st.dictionaries(st.sampled_from("abc"), probabilities)))
def test_probabilities_are_counted_as_a_histogram_counts(verdicts: list[dict[str, float]]) -> None:
    registry, other = CollectorRegistry(), CollectorRegistry()
    ours = Probabilities("p", "P.", ("policy", "category"), bounds=BOUNDS, registry=registry)
    theirs = Histogram("p", "P.", ["policy", "category"], buckets=BOUNDS, registry=other)
    for verdict in verdicts:
        ours.observe("default", verdict.items())
        for name, value in verdict.items():
            theirs.labels("default", name).observe(value)
    [[expected], [found]] = other.collect(), registry.collect()
    assert {
        (each.name, *each.labels.items()): pytest.approx(each.value)
        for each in expected.samples
        if not each.name.endswith("_created")
    } == {(each.name, *each.labels.items()): each.value for each in found.samples}


def test_policies_with_a_category_of_one_name_are_told_apart(registry: CollectorRegistry) -> None:
    found = Probabilities("p", "P.", ("policy", "category"), bounds=BOUNDS, registry=registry)
    found.observe("one", [("red", 0.2)])
    found.observe("other", [("red", 0.3), ("blue", 0.4)])
    sums = {
        policy: registry.get_sample_value("p_sum", {"policy": policy, "category": "red"})
        for policy in ("one", "other")
    }
    assert sums == {"one": 0.2, "other": 0.3}


# ---------------------------------------------------------------- bounds


@given(st.sets(st.text()), st.lists(st.none() | st.text()), st.integers(0, 5))
def test_labels_are_never_more_than_were_allowed(
    known: set[str], seen: list[str | None], most: int
) -> None:
    tenants = Known(most)
    tenants.know(known)
    labels = {tenants.label(value) for value in seen}
    assert len(labels - {"other", "none"}) <= most
    assert labels <= known | {"other", "none"}


@given(st.lists(st.text(), unique=True))
def test_all_processes_tell_the_same_ones_apart(names: list[str]) -> None:
    one, other = Known(3), Known(3)
    one.know(names)
    other.know(reversed(names))
    assert [one.label(name) for name in names] == [other.label(name) for name in names]


def test_what_is_no_longer_known_is_other() -> None:
    tenants = Known(3)
    tenants.know(["shop"])
    tenants.know(["market"])
    assert (tenants.label("shop"), tenants.label("market")) == ("other", "market")
