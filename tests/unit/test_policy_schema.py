"""The schema of the policy language takes what the reader takes, and knows the same keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from typer.testing import CliRunner

from worker.cli import cli
from worker.policy_schema import keys, policy_schema
from worker.policy_yaml import InvalidPolicy, parse_policy

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "unit" / "policies"
VALID = [
    *sorted((ROOT / "policies").glob("*.yaml")),
    *(path for path in sorted(FIXTURES.glob("*.yaml")) if not path.name.startswith("broken_")),
]
SCHEMA = policy_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
DIGEST = "sha256:" + "0" * 64

#: Has every mapping of the language somewhere.
WHOLE: dict[str, Any] = {
    "version": 1,
    "id": "whole",
    "model": "fake",
    "contrast": [{"text": "a landscape", "weight": 2}],
    "categories": [
        {
            "id": "weapons",
            "prompts": [{"text": "a gun", "weight": 2}],
            "contrast": [{"text": "a drill"}],
            "exceptions": [{"prompts": [{"text": "a toy gun"}], "weight": 0.5}],
            "head": {"file": "heads/gun.safetensors", "weight": 0.5},
            "calibration": {"method": "platt", "for": DIGEST, "scale": 1, "bias": 0},
            "review": {"value": 0.2, "target": {"fpr": 0.1}},
            "block": {"value": 0.9, "target": {"recall": 0.1}},
            "severity": {"low": 0.1, "high": 0.9},
            "frames": {"at_least": 2},
        }
    ],
    "tenants": {"kids": {"weapons": {"review": 0.1}}},
    "limits": {"max_block_rate": {"per": "10m", "share": 0.3, "min_requests": 200}},
    "lists": [{"id": "known", "file": "known.txt", "action": "block"}],
    "tests": [{"image": "a.jpg", "expect": "allow"}],
}


def content(path: Path) -> Any:
    loaded = YAML(typ="safe", pure=True).load(path.read_text("utf-8-sig"))
    return json.loads(json.dumps(loaded, default=str))  # a date is a text to JSON


def mappings(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping whose keys are the language's, by its path in the schema."""
    if isinstance(value, list):
        for item in value:
            yield from mappings(item, f"{path}[]")
    elif isinstance(value, dict):
        chosen = path in ("tenants", "tenants.*") or path.endswith(".severity")
        if not chosen:
            yield path, value
        for key, inner in value.items():
            yield from mappings(inner, f"{path}.{'*' if chosen else key}".removeprefix("."))


PLACES = [path for path, _ in mappings(WHOLE)]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_command_prints_it() -> None:
    done = CliRunner().invoke(cli, ["policy", "schema"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, SCHEMA)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.name)
def test_policy_that_the_reader_takes_is_valid(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(content(path))] == []


def test_whole_language_is_valid() -> None:
    assert [error.message for error in VALIDATOR.iter_errors(WHOLE)] == []


@pytest.mark.parametrize("place", PLACES)
def test_schema_knows_the_keys_that_the_reader_knows_and_no_others(place: str) -> None:
    document = deepcopy(WHOLE)
    [mapping] = [found for path, found in mappings(document) if path == place]
    mapping["zzzzzz"] = 1
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(json.dumps(document).encode(), "whole.yaml")
    [message] = [p.message for p in refused.value.problems if "zzzzzz" in p.message]
    known = set(message.partition("known here: ")[2].split(", "))
    inside = f"{place}." if place else ""
    said = {
        path.removeprefix(inside)
        for path, _ in keys(SCHEMA)
        if path.startswith(inside) and not {".", "["} & set(path.removeprefix(inside))
    }
    assert said == known


def test_every_mapping_of_the_schema_is_among_those_tried() -> None:
    parents = {path.rpartition(".")[0] for path, _ in keys(SCHEMA)}
    assert parents == set(PLACES)


def test_every_key_says_what_it_means() -> None:
    assert [path for path, schema in keys(SCHEMA) if not schema.get("description")] == []


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"version": 0}, id="version"),
        pytest.param({"id": "no spaces"}, id="label"),
        pytest.param({"model": " "}, id="empty text"),
        pytest.param({"templates": ["a photo"]}, id="template without a place"),
        pytest.param({"templates": ["{} and {}"]}, id="template with two places"),
        pytest.param({"contrast": []}, id="empty list"),
        pytest.param({"on_error": "undetermined"}, id="choice"),
        pytest.param({"max_frames": 65}, id="too many frames"),
        pytest.param({"tenants": {"kids": {"weapons": {}}}}, id="empty mapping"),
        pytest.param({"lists": [{"id": "a", "file": "../x", "action": "block"}]}, id="path"),
        pytest.param({"tests": [{"image": "/x.jpg", "expect": "allow"}]}, id="absolute path"),
        pytest.param(
            {"limits": {"max_block_rate": {"per": "soon", "share": 0.5, "min_requests": 1}}},
            id="duration",
        ),
    ],
)
def test_wrong_policy_is_refused_by_schema_and_reader(wrong: dict[str, Any]) -> None:
    assert_both_refuse({**WHOLE, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"prompts": ["a gun", ""]}, id="empty prompt"),
        pytest.param({"prompts": [{"text": "a gun", "weight": 0}]}, id="weight"),
        pytest.param({"review": 1.5}, id="threshold"),
        pytest.param({"review": {"target": {"fpr": 0.1, "recall": 0.5}}}, id="two targets"),
        pytest.param({"block": {}}, id="threshold without anything"),
        pytest.param({"mode": "on"}, id="mode"),
        pytest.param({"frames": {"at_least": 0}}, id="frames"),
        pytest.param({"calibration": {"method": "platt", "for": DIGEST}}, id="no scale"),
        pytest.param(
            {"calibration": {"method": "isotonic", "for": DIGEST, "scale": 1}}, id="no points"
        ),
        pytest.param(
            {"calibration": {"method": "isotonic", "for": DIGEST, "points": [[0, 0.1]]}},
            id="one point",
        ),
        pytest.param({"calibration": {"method": "magic", "for": DIGEST}}, id="method"),
        pytest.param({"severity": {"so so": 0.3}}, id="band"),
        pytest.param({"block_uncalibrated": "maybe"}, id="flag"),
    ],
)
def test_wrong_category_is_refused_by_schema_and_reader(wrong: dict[str, Any]) -> None:
    assert_both_refuse({**WHOLE, "categories": [{**WHOLE["categories"][0], **wrong}]})


@pytest.mark.parametrize("missing", [("prompts", "head"), ("review", "block"), ("id",)])
def test_category_without_what_it_needs_is_refused_by_schema_and_reader(
    missing: tuple[str, ...],
) -> None:
    kept = {key: value for key, value in WHOLE["categories"][0].items() if key not in missing}
    assert_both_refuse({**WHOLE, "categories": [kept]})


def assert_both_refuse(document: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(document)
    assert messages(document) - messages(WHOLE)  # the files that it names are not there


def messages(document: dict[str, Any]) -> set[str]:
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(json.dumps(document).encode(), "whole.yaml")
    return {problem.message for problem in refused.value.problems}
