"""Promoting changes one key of a file, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import FakeEncoder
from tests.policy_factory import compiled_of
from worker.commands.policy_promote import promote
from worker.commands.render import Exit
from worker.errors import Misconfigured
from worker.policy import Mode, margin_digest
from worker.policy_yaml import InvalidPolicy, load_policy
from worker.settings import Settings
from worker.settings_load import load_settings

HEAD = """\
# our   policy
version: 1
id: test
model: fake
contrast: [blue]
categories:
"""
ON_TRIAL = """\
  - id: colour.red     # the first
    prompts: ["red",
              "crimson"]
    calibration: {method: platt, scale: 1, bias: 0, for: FOR}
    review: 0.5
    mode:   shadow     # since Monday
"""
OTHER = """\
  - {id: colour.green, prompts: [green], review: 0.5, block: 0.9}
"""


def load(_: Settings) -> FakeEncoder:
    return FakeEncoder()


def no_model(_: Settings) -> FakeEncoder:
    raise AssertionError("this needs no model")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A policy with a calibrated category on trial, and an uncalibrated one that is enforced."""
    path = tmp_path / "policy.yaml"
    path.write_text((HEAD + ON_TRIAL + OTHER).replace("FOR", '"sha256:' + "0" * 64 + '"'))
    policy = load_policy(path)
    fitted_for = margin_digest(policy, policy.categories[0], FakeEncoder().info)
    path.write_text((HEAD + ON_TRIAL + OTHER).replace("FOR", f'"{fitted_for}"'))
    return path


def promoted(file: Path, *ids: str, to: Mode = "enforce", force: bool = False) -> Exit:
    with_model = load if to == "enforce" and not force else no_model
    settings = load_settings({"policies": (str(file),)})
    return promote(settings, file, ids, to, force=force, load=with_model)


def test_mode_is_set_and_all_else_stays_as_it_is(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_text()
    assert promoted(file, "colour.red") is Exit.ALL_ALLOWED
    after = file.read_text()
    assert load_policy(file).categories[0].mode == "enforce"
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    [(old, new)] = changed
    assert old == "    mode:   shadow     # since Monday"
    assert new.startswith("    mode: enforce") and new.endswith("# since Monday")
    said = capsys.readouterr().out
    assert f"\n-{old}\n+{new}\n" in said


def test_promoted_category_decides(file: Path) -> None:
    promoted(file, "colour.red")
    compiled = compiled_of(load_policy(file), FakeEncoder())
    assert compiled.uncalibrated == ("colour.green",)


def test_category_is_put_on_trial_without_a_model(file: Path) -> None:
    promoted(file, "colour.green", to="shadow")
    assert [category.mode for category in load_policy(file).categories] == ["shadow", "shadow"]


def test_category_whose_mode_goes_without_saying_gets_the_key(file: Path) -> None:
    promoted(file, "colour.green", to="off")
    assert "mode: " in file.read_text().splitlines()[-1]
    assert load_policy(file).categories[1].mode == "off"


def test_category_that_is_named_twice_is_changed_once(file: Path) -> None:
    promoted(file, "colour.red", "colour.red")
    assert file.read_text().count("mode:") == 1


def test_windows_line_endings_and_a_byte_order_mark_stay(file: Path) -> None:
    raw = b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(raw)
    promoted(file, "colour.red")
    after = file.read_bytes()
    assert after.startswith(b"\xef\xbb\xbf#")
    assert after.count(b"\r\n") == after.count(b"\n") == raw.count(b"\n")


def refused(file: Path, said: str, *ids: str, to: Mode = "enforce", force: bool = False) -> None:
    before = file.read_bytes()
    with pytest.raises(Misconfigured, match=said):
        promoted(file, *ids, to=to, force=force)
    assert file.read_bytes() == before


def test_unknown_category_is_refused(file: Path) -> None:
    refused(file, r"no category is named 'red'; there are: colour\.red, colour\.green", "red")


def test_category_that_has_the_mode_already_is_refused(file: Path) -> None:
    refused(file, r"colour\.green: already `mode: enforce`", "colour.green")


def test_uncalibrated_category_is_refused_unless_forced(file: Path) -> None:
    promoted(file, "colour.green", to="shadow")
    refused(file, r"colour\.green: not calibrated, so what is shown", "colour.green")
    promoted(file, "colour.green", force=True)
    assert load_policy(file).categories[1].mode == "enforce"


def test_category_whose_wording_changed_since_is_refused_unless_forced(file: Path) -> None:
    file.write_text(file.read_text().replace("crimson", "scarlet"))
    refused(file, r"not calibrated for the present wording and model", "colour.red")
    promoted(file, "colour.red", force=True)


def test_last_category_is_not_turned_off(file: Path) -> None:
    refused(
        file,
        r"(?s)nothing was written.*every category is off",
        *("colour.red", "colour.green"),
        to="off",
    )


def test_invalid_policy_is_refused_with_its_problems(file: Path) -> None:
    file.write_text(file.read_text().replace("review: 0.5", "reviev: 0.5", 1))
    with pytest.raises(InvalidPolicy, match="did you mean `review`"):
        promoted(file, "colour.red")


def test_policy_that_is_to_be_solved_first_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("block: 0.9", "block: {target: {fpr: 0.01}}"))
    refused(file, "run `imagewarden policy calibrate`", "colour.red")


def test_mode_that_is_shared_through_an_anchor_is_refused(file: Path) -> None:
    text = file.read_text().replace("mode:   shadow ", "mode: &trial shadow ")
    file.write_text(text.replace("block: 0.9}", "block: 0.9, mode: *trial}"))
    refused(file, "shared through an anchor", "colour.green", force=True)


def test_policy_for_another_model_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("model: fake", "model: other"))
    refused(file, "written for the model 'other'", "colour.red")
