"""Whatever a file holds, it is a policy or it is refused with places and sentences."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy_factory import category
from worker.policy import Policy
from worker.policy_yaml import InvalidPolicy, parse_policy

untimed = settings(deadline=None)

KEYS = (
    *("version", "id", "model", "templates", "contrast", "on_error", "views", "max_frames"),
    *("categories", "tenants", "limits", "description", "prompts", "text", "weight", "aggregate"),
    *("calibration", "method", "scale", "bias", "for", "date", "prevalence", "review", "block"),
    *("value", "target", "fpr", "precision", "mode", "block_uncalibrated"),
    *("exceptions", "head", "file", "severity", "frames", "at_least", "points", "lists", "action"),
    *("distance", "max_block_rate", "per", "share", "min_requests", "tests", "image", "expect"),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["platt", "a"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


def read(raw: bytes) -> Policy | None:
    try:
        return parse_policy(raw, "policy.yaml")
    except InvalidPolicy as refused:
        assert refused.problems
        for problem in refused.problems:
            assert problem.line >= 1 and problem.column >= 1
            assert problem.message
        return None


@untimed
@given(raw=st.binary() | st.text().map(str.encode))
def test_no_bytes_make_the_loader_fail_in_another_way(raw: bytes) -> None:
    assert read(raw) is None


@untimed
@given(data=st.data())
def test_a_wrong_value_anywhere_is_refused_or_means_something(data: st.DataObject) -> None:
    policy: dict[str, Any] = {
        "version": 1,
        "id": "a",
        "model": "fake",
        "tenants": {"shop": {"colour.red": {"review": 0.1}}},
        "limits": {"max_block_rate": {"per": "10m", "share": 0.5, "min_requests": 9}},
        "lists": [{"id": "bad", "file": "none.txt", "action": "block"}],
        "tests": [{"image": "a.jpg", "expect": "allow"}],
        "categories": [
            category(
                calibration={"method": "isotonic", "points": [[0, 0.5], [1, 0.6]]},
                exceptions=["pink", {"prompts": ["poster"], "weight": 2}],
                head={"file": "none.safetensors", "weight": 0.5},
                frames={"at_least": 2},
                severity={"low": 0.1},
                block={"target": {"fpr": 0.1}},
            )
        ],
    }
    first = policy["categories"][0]
    places: list[Any] = [policy, first, policy["tenants"]["shop"]["colour.red"]]
    places += [first[key] for key in ("calibration", "head", "frames", "severity", "block")]
    places += [first["exceptions"][1], first["block"]["target"], policy["tests"][0]]
    places += [policy["limits"], policy["limits"]["max_block_rate"], policy["lists"][0]]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(KEYS))] = data.draw(values)

    with suppress(ValueError):  # JSON has no NaN, and YAML spells it otherwise
        read(json.dumps(policy, allow_nan=False).encode())
