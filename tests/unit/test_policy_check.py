"""``policy check`` tells every problem of every file at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.policy_factory import category, policy_bytes
from worker.cli import cli

ROOT = Path(__file__).resolve().parents[2]


def checked(*files: Path) -> Any:
    return CliRunner().invoke(cli, ["policy", "check", *map(str, files)])


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.yaml")), ids=lambda p: p.name)
def test_policy_that_ships_has_no_problems(path: Path) -> None:
    done = checked(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: policy ")


def test_good_policy_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("0" * 64)
    (tmp_path / "a.png").touch()
    file = tmp_path / "policy.yaml"
    file.write_bytes(
        policy_bytes(
            category(),
            category("other", mode="shadow"),
            lists=[{"id": "known", "file": "known.txt", "action": "block"}],
            tests=[{"image": "a.png", "expect": "allow"}],
        )
    )
    done = checked(file)
    assert done.stdout == (
        f"{file}: policy test version 1 for fake: 2 categories (1 shadow), 1 list, 1 test: "
        f"no problems\n"
    )


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    good, bad, worse = (tmp_path / f"{name}.yaml" for name in ("good", "bad", "worse"))
    good.write_bytes(policy_bytes(category()))
    bad.write_bytes(policy_bytes(category(review=2, mode="on")))
    worse.write_text("[")
    done = checked(good, bad, worse, tmp_path / "nowhere.yaml")
    assert done.exit_code == 2
    assert done.stdout.startswith(f"{good}: ")
    *problems, total = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in problems] == [
        *[str(bad)] * 2,
        str(worse),
        str(tmp_path / "nowhere.yaml"),
    ]
    assert total == "4 problems in 3 files"


def test_missing_image_of_a_test_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    tests = "tests:\n  - {image: images/nowhere.png, expect: allow}\n"
    file.write_text(
        "version: 1\nid: test\nmodel: fake\ncategories:\n"
        "  - {id: red, prompts: [red], contrast: [blue], review: 0.5}\n" + tests
    )
    done = checked(file)
    assert done.exit_code == 2
    first, total = done.stderr.splitlines()
    assert first.startswith(f"{file}:7:13: ")
    assert first.endswith("images/nowhere.png is not there; add the image or remove the test")
    assert total == "1 problem in 1 file"
