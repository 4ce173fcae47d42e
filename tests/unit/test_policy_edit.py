"""Calibrations go into a policy's text, and nothing else of it changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from worker.errors import Misconfigured
from worker.policy_edit import replace_file, with_calibrations
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


def edited(text: str) -> str:
    result = with_calibrations(text, {"weapons.gun": FIT})
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


def test_categories_without_a_fit_are_left_alone() -> None:
    assert with_calibrations(HEAD + PLAIN + SECOND, {}) == HEAD + PLAIN + SECOND


def test_a_calibration_shared_through_an_anchor_is_refused() -> None:
    shared = OLD.replace("{method", "&fit {method")
    text = HEAD + PLAIN + shared + SECOND + "    calibration: *fit\n"
    for id_ in ("weapons.gun", "drugs"):
        with pytest.raises(Misconfigured, match="shared through an anchor"):
            with_calibrations(text, {id_: FIT})


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
