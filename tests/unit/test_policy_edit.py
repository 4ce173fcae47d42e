"""Values go into a policy's text, and nothing else of it changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from worker.authoring.edit import Value, replace_file, with_keys
from worker.errors import Misconfigured
from worker.policy_yaml import parse_policy

DIGEST = "sha256:" + "a" * 64
FIT = {"method": "platt", "scale": 1.5, "bias": -2.25, "for": DIGEST, "date": "2026-01-31"}
WRITTEN = f"""\
    calibration:
      method: platt
      scale: 1.5
      bias: -2.25
      for: "{DIGEST}"
      date: 2026-01-31
"""
HEAD = """\
# kept:  odd   spacing
version: 1
id: test
model:   fake      # and this
contrast: ['an ordinary photo']
categories:
"""
PLAIN = """\
  - id: weapons.gun   # the first
    prompts: ["a gun",
              "a rifle"]

    # thresholds
    review: 0.5
"""
OLD = """\
    calibration: {method: platt, scale: 1, bias: 0,
                  for: "sha256:BBBB"}   # fitted last year
""".replace("BBBB", "b" * 64)
OLD_BLOCK = f"""\
    calibration:
      method: platt   # of Platt
      scale: 1
      bias: 0
      for: {"sha256:" + "b" * 64}
"""
SECOND = """\

  # the second
  - id: drugs
    prompts: [pills]
    review: 0.25
"""


def edited(text: str, **values: Value) -> str:
    result = with_keys(text, {"weapons.gun": values or {"calibration": FIT}})
    parse_policy(result.encode(), "test.yaml")
    return result


def test_a_calibration_is_added_before_the_thresholds() -> None:
    before, thresholds = PLAIN.split("    review")
    expected = HEAD + before + WRITTEN + "    review" + thresholds + SECOND
    assert edited(HEAD + PLAIN + SECOND) == expected


@pytest.mark.parametrize("old", [OLD, OLD_BLOCK], ids=["flow", "block"])
def test_a_calibration_is_replaced_and_the_comments_around_it_stay(old: str) -> None:
    before, thresholds = PLAIN.split("    # thresholds")
    text = HEAD + before + old + "\n    # thresholds" + thresholds + SECOND
    comment = "   # fitted last year\n" if old == OLD else "\n"
    expected = before + WRITTEN.removesuffix("\n") + comment + "\n    # thresholds" + thresholds
    assert edited(text) == HEAD + expected + SECOND


def test_a_calibration_that_comes_last_is_replaced_up_to_the_next_category() -> None:
    text = HEAD + PLAIN + OLD_BLOCK + SECOND
    assert edited(text) == HEAD + PLAIN + WRITTEN + SECOND


def test_a_value_is_replaced_and_the_comment_beside_it_stays() -> None:
    text = HEAD + PLAIN + "    mode: shadow   # on trial\n" + SECOND
    assert edited(text, mode="enforce") == text.replace("mode: shadow ", "mode: enforce ")


def test_several_values_of_one_place_come_in_their_order() -> None:
    text = edited(HEAD + PLAIN + SECOND, parent="weapons", mode="shadow")
    assert "    parent: weapons\n    mode: shadow\n    review: 0.5\n" in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "    review: {target: {fpr: 0.01}, value: 0.5}   # agreed\n",
            "    review: {target: {fpr: 0.01}, value: 0.75}   # agreed\n",
        ),
        (
            "    review: {target: {fpr: 0.01}}   # agreed\n",
            "    review: {value: 0.75, target: {fpr: 0.01}}   # agreed\n",
        ),
        (
            "    review:\n      target: {fpr: 0.01}   # agreed\n",
            "    review:\n      value: 0.75\n      target: {fpr: 0.01}   # agreed\n",
        ),
        (
            "    review:\n      value: 0.5 # for now\n      target: {fpr: 0.01}   # agreed\n",
            "    review:\n      value: 0.75 # for now\n      target: {fpr: 0.01}   # agreed\n",
        ),
    ],
)
def test_a_value_goes_into_a_mapping_of_a_category(before: str, after: str) -> None:
    text = HEAD + PLAIN.replace("    review: 0.5\n", before) + SECOND
    assert edited(text, **{"review.value": 0.75}) == text.replace(before, after)


@pytest.mark.parametrize("value", ["no", "a: b", "#1", "", "it's", 'say "x"', "1.5", "ä", " x"])
def test_a_text_is_read_back_as_it_was_written(value: str) -> None:
    text = with_keys(HEAD + PLAIN + SECOND, {"drugs": {"description": value}})
    from ruamel.yaml import YAML

    assert YAML(typ="safe", pure=True).load(text)["categories"][1]["description"] == value


def test_writing_the_same_again_changes_nothing() -> None:
    once = edited(HEAD + PLAIN + SECOND)
    assert edited(once) == once


def test_line_ends_stay_what_they_are() -> None:
    text = (HEAD + PLAIN + SECOND).replace("\n", "\r\n")
    assert edited(text) == edited(HEAD + PLAIN + SECOND).replace("\n", "\r\n")


def test_a_policy_in_json_stays_json() -> None:
    category = {"id": "weapons.gun", "prompts": ["a gun"], "review": 0.5}
    text = json.dumps(
        {"version": 1, "id": "t", "model": "m", "contrast": ["a"], "categories": [category]}
    )
    once = json.loads(edited(text))
    assert once["categories"] == [{**category, "calibration": FIT}]
    assert json.loads(edited(edited(text))) == once


def test_categories_without_an_edit_are_left_alone() -> None:
    assert with_keys(HEAD + PLAIN + SECOND, {}) == HEAD + PLAIN + SECOND


def test_a_value_shared_through_an_anchor_is_refused() -> None:
    shared = OLD.replace("{method", "&fit {method")
    text = HEAD + PLAIN + shared + SECOND + "    calibration: *fit\n"
    for id_ in ("weapons.gun", "drugs"):
        with pytest.raises(Misconfigured, match="shared through an anchor"):
            with_keys(text, {id_: {"calibration": FIT}})


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        ({"weapons.gnu": {"mode": "off"}}, "no category is named 'weapons.gnu'"),
        ({"drugs": {"review.value": 0.5}}, "`review` of 'drugs' is no mapping"),
        ({"drugs": {"block.value": 0.5}}, "`block` of 'drugs' is no mapping"),
    ],
)
def test_what_is_not_there_cannot_be_edited(
    edits: dict[str, dict[str, Value]], sentence: str
) -> None:
    with pytest.raises(Misconfigured, match=sentence):
        with_keys(HEAD + PLAIN + SECOND, edits)


def test_replacing_a_file_keeps_its_rights_its_links_and_leaves_nothing_else(
    tmp_path: Path,
) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_file(link, b"new")
    assert real.read_bytes() == b"new"
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "real.yaml"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder", b"new")
    assert os.listdir(tmp_path) == ["folder"]
