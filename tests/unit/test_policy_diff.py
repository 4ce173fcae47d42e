"""What differs between two policies is said in words, and what is certain to come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.policy_factory import category, policy_bytes, policy_of
from worker.authoring.consequences import consequences
from worker.authoring.diff import EVERY_CATEGORY, POLICY, changes
from worker.cli import cli
from worker.policy import Policy

FOR = "sha256:" + "a" * 64
FITTED = {"method": "platt", "scale": 1, "bias": 0, "for": FOR}


def told(old: Policy, new: Policy) -> list[tuple[str, str, str | None, str | None]]:
    return [(c.where, c.what, c.old, c.new) for c in changes(old, new)]


def policies(before: dict[str, Any], after: dict[str, Any]) -> tuple[Policy, Policy]:
    """Of one category with these keys; the second is version 2."""
    return policy_of(category(**before)), policy_of(category(**after), version=2)


VERSION = (POLICY, "version", "1", "2")


# ---------------------------------------------------------------- in words


def test_policy_differs_in_nothing_from_itself() -> None:
    policy = policy_of(
        category(calibration=FITTED, block=0.9), tests=[{"image": "a.png", "expect": "allow"}]
    )
    assert changes(policy, policy) == ()
    assert consequences(policy, policy) == ()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param(
            {"prompts": ["red", "ruby"]},
            {"prompts": ["red", {"text": "crimson", "weight": 2}]},
            [("prompt “crimson”", None, "weight 2"), ("prompt “ruby”", "weight 1", None)],
            id="prompts",
        ),
        pytest.param(
            {},
            {"contrast": [{"text": "blue", "weight": 3}]},
            [("contrast “blue”", "weight 1", "weight 3")],
            id="weight",
        ),
        pytest.param({"block": 0.8}, {"block": 0.9}, [("block", "0.8", "0.9")], id="threshold"),
        pytest.param(
            {"calibration": {**FITTED, "prevalence": 0.1}},
            {
                "calibration": {**FITTED, "prevalence": 0.1},
                "review": {"value": 0.5, "target": {"precision": 0.5}},
            },
            [("review", "0.5", "0.5 (target: precision 0.5)")],
            id="target",
        ),
        pytest.param({}, {"mode": "shadow"}, [("mode", "enforce", "shadow")], id="mode"),
        pytest.param(
            {},
            {
                "exceptions": [
                    {"prompts": ["a toy", {"text": "a doll", "weight": 2}], "weight": 0.5}
                ]
            },
            [("exception “a doll” × 2 / “a toy”", None, "weight 0.5")],
            id="exception",
        ),
        pytest.param(
            {"severity": {"low": 0.1}},
            {"severity": {"low": 0.2, "high": 0.9}},
            [("severity", "low from 0.1", "low from 0.2, high from 0.9")],
            id="severity",
        ),
        pytest.param(
            {}, {"frames": {"at_least": 2}}, [("frames.at_least", None, "2")], id="frames"
        ),
        pytest.param(
            {}, {"aggregate": "max"}, [("aggregate", "logmeanexp", "max")], id="aggregate"
        ),
        pytest.param({}, {"parent": "hue"}, [("parent", "colour", "hue")], id="parent"),
        pytest.param(
            {}, {"block_uncalibrated": True}, [("block_uncalibrated", None, "true")], id="flag"
        ),
    ],
)
def test_change_of_a_category_is_told(
    before: dict[str, Any], after: dict[str, Any], said: list[tuple[str, str | None, str | None]]
) -> None:
    found = told(*policies(before, after))
    assert found == [VERSION, *(("colour.red", *one) for one in said)]


def test_changes_besides_categories_are_told() -> None:
    old = policy_of(category(), on_error="block", templates=["{}"])
    new = policy_of(
        category(),
        id="other",
        templates=["a photo of {}"],
        views="pad",
        max_frames=4,
        limits={"max_block_rate": {"per": "10m", "share": 0.3, "min_requests": 200}},
        tests=[{"image": "a.png", "expect": "allow", "tenant": "kids"}],
    )
    assert told(old, new) == [
        (POLICY, "id", "test", "other"),
        (POLICY, "template “a photo of {}”", None, ""),
        (POLICY, "on_error", "block", "review"),
        (POLICY, "views", "centre", "pad"),
        (POLICY, "max_frames", "8", "4"),
        (POLICY, "limits.max_block_rate", None, "0.3 of at least 200 requests in 600 s"),
        (POLICY, "test a.png for kids", None, "allow"),
        (POLICY, "template “{}”", "", None),
    ]


def test_lists_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    from worker.policy_yaml import load_policy

    (tmp_path / "known.txt").write_text("0" * 64 + "\n")
    lists = [{"id": "known", "file": "known.txt", "action": "block"}]
    file = tmp_path / "policy.yaml"
    file.write_bytes(policy_bytes(category(), lists=lists))
    old = load_policy(file)
    (tmp_path / "known.txt").write_text("0" * 64 + "\n" + "1" * 64 + "\n")
    [change] = changes(old, load_policy(file))
    assert change.what == "list known"
    assert change.old is not None and "of 1 hashes" in change.old
    assert change.new is not None and "of 2 hashes" in change.new


def test_tenant_is_told_where_it_fares_otherwise_than_everybody() -> None:
    old = policy_of(category(block=0.8), tenants={"kids": {"colour.red": {"block": 0.7}}})
    new = policy_of(category(block=0.9), tenants={"kids": {"colour.red": {"block": 0.6}}})
    assert told(old, new) == [
        ("colour.red", "block", "0.8", "0.9"),
        ("colour.red", "block for kids", "0.7", "0.6"),
    ]
    same = policy_of(category(block=0.9), tenants={"kids": {"colour.red": {"block": 0.7}}})
    assert told(old, same) == [("colour.red", "block", "0.8", "0.9")]


def test_change_of_the_shared_contrast_is_told_once() -> None:
    categories = (category(), category("colour.green", prompts=["green"]))
    old = policy_of(*categories, contrast=["a cup"])
    new = policy_of(*categories, contrast=["a plate"])
    assert told(old, new) == [
        (EVERY_CATEGORY, "contrast “a plate”", None, "weight 1"),
        (EVERY_CATEGORY, "contrast “a cup”", "weight 1", None),
    ]


def test_new_category_is_told_without_what_goes_without_saying() -> None:
    added = category("colour.green", prompts=["green"], contrast=["white"])
    old = policy_of(category(), contrast=["a cup"])
    new = policy_of(category(), added, contrast=["a cup"])
    assert told(old, new) == [
        ("colour.green", "category", None, "colour.green"),
        ("colour.green", "mode", None, "enforce"),
        ("colour.green", "prompt “green”", None, "weight 1"),
        ("colour.green", "contrast “white”", None, "weight 1"),
        ("colour.green", "review", None, "0.5"),
    ]
    assert told(new, old) == [("colour.green", "category", "colour.green", None)]


def test_category_that_looks_for_the_same_under_another_id_was_renamed() -> None:
    old, new = policy_of(category("red")), policy_of(category("rouge"), version=2)
    assert told(old, new) == [VERSION, ("rouge", "id", "red", "rouge")]
    assert "verdicts say rouge where they said red" in consequences(old, new)


# ---------------------------------------------------------------- what is certain


def test_edit_that_changes_no_decision_says_so() -> None:
    old = policy_of(category(description="Red."))
    new = policy_of(category(description="Really red."))
    assert consequences(old, new) == (
        "no decision can change: what differs is only what people read",
    )


def test_category_whose_wording_changed_can_no_longer_block() -> None:
    keys = {"calibration": FITTED, "block": 0.9}
    old, new = policies(keys, {**keys, "prompts": ["red", "ruby"]})
    [said] = consequences(old, new)
    assert said.startswith("colour.red counts as uncalibrated now and can no longer block")
    old, new = policies({"calibration": FITTED}, {"calibration": FITTED, "aggregate": "max"})
    [said] = consequences(old, new)
    assert said.startswith("colour.red counts as uncalibrated now: ")


def test_template_voids_every_calibration_at_once() -> None:
    categories = [category(name, calibration=FITTED, block=0.9) for name in ("a", "b", "c")]
    old = policy_of(*categories)
    new = policy_of(*categories, templates=["a photo of {}"], version=2)
    [said] = consequences(old, new)
    assert said.startswith("a, b and c count as uncalibrated now and can no longer block")


def test_category_that_may_block_uncalibrated_goes_on_blocking() -> None:
    keys = {"calibration": FITTED, "block": 0.9, "block_uncalibrated": True}
    [said] = consequences(*policies(keys, {**keys, "prompts": ["ruby"]}))
    assert "no longer block" not in said


def test_calibration_fitted_again_or_removed_is_told() -> None:
    again = {**FITTED, "scale": 2, "for": "sha256:" + "b" * 64}
    [said] = consequences(*policies({"calibration": FITTED}, {"calibration": again}))
    assert said == "colour.red: calibrated anew, so equal images may get other probabilities"
    [said] = consequences(*policies({"calibration": FITTED}, {}))
    assert said == "colour.red counts as uncalibrated now: the calibration was removed"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("shadow", "enforce", "colour.red decides now"),
        ("off", "enforce", "colour.red decides now"),
        ("enforce", "shadow", "colour.red is on trial now and decides no longer: "),
        ("off", "shadow", "colour.red is on trial now: "),
        ("enforce", "off", "colour.red decides no longer, and verdicts do not mention it"),
        ("shadow", "off", "colour.red is on trial no longer, and verdicts do not mention it"),
    ],
)
def test_mode_is_told_by_what_it_does(before: str, after: str, said: str) -> None:
    other = category("other")
    old = policy_of(category(mode=before), other)
    new = policy_of(category(mode=after), other, version=2)
    [found] = consequences(old, new)
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.9, 0.8, "colour.red: probabilities from 0.8 to below 0.9 are blocked now too"),
        (0.8, 0.9, "colour.red: probabilities from 0.8 to below 0.9 are blocked no longer"),
        (None, 0.9, "colour.red: probabilities from 0.9 are blocked now; none were before"),
        (0.9, None, "colour.red: none is blocked any more"),
    ],
)
def test_threshold_alone_tells_which_way_decisions_go(
    before: float | None, after: float | None, said: str
) -> None:
    def keys(block: float | None) -> dict[str, Any]:
        return {"calibration": FITTED, **({} if block is None else {"block": block})}

    assert consequences(*policies(keys(before), keys(after))) == (said,)


def test_block_of_an_uncalibrated_category_is_not_said_to_block() -> None:
    assert consequences(*policies({"block": 0.9}, {"block": 0.8})) == ()
    bare = {key: value for key, value in category().items() if key != "review"}
    old, new = policy_of({**bare, "block": 0.9}), policy_of({**bare, "block": 0.8}, version=2)
    [said] = consequences(old, new)
    assert said == "colour.red: probabilities from 0.8 to below 0.9 are reviewed now too"


def test_what_both_thresholds_take_is_said_to_be_blocked_alone() -> None:
    old, new = policies(
        {"calibration": FITTED, "review": 0.95, "block": 0.95},
        {"calibration": FITTED, "review": 0.85, "block": 0.85},
    )
    assert consequences(old, new) == (
        "colour.red: probabilities from 0.85 to below 0.95 are blocked now too",
    )


def test_what_is_blocked_now_is_not_said_to_be_reviewed() -> None:
    lower = {"calibration": FITTED, "review": 0.6, "block": 0.7}
    higher = {"calibration": FITTED, "review": 0.8, "block": 0.9}
    assert consequences(*policies(higher, lower)) == (
        "colour.red: probabilities from 0.6 to below 0.7 are reviewed now too",
        "colour.red: probabilities from 0.7 to below 0.9 are blocked now too",
    )
    assert consequences(*policies(lower, higher)) == (
        "colour.red: probabilities from 0.6 to below 0.7 are reviewed no longer",
        "colour.red: probabilities from 0.7 to below 0.9 are blocked no longer",
    )


def test_version_that_was_not_raised_is_pointed_out() -> None:
    old, new = policy_of(category(review=0.5), version=3), policy_of(category(review=0.4))
    assert any(
        said.startswith("the version fell to 1: raise it") for said in consequences(old, new)
    )
    new = policy_of(category(review=0.4), version=3)
    assert any(said.startswith("the version is still 3") for said in consequences(old, new))


def test_what_concerns_the_whole_policy_is_told() -> None:
    old = policy_of(category())
    new = policy_of(category(), version=2, id="other", model="else", max_frames=1, on_error="allow")
    assert consequences(old, new) == (
        "only workers that load the model else take this policy",
        "every image is embedded anew: other rows of it are looked at, and none is cached",
        "an image that cannot be examined comes to allow now",
        "requests that ask for the policy 'test' do not find it, and are undetermined",
    )


CATEGORIES = st.lists(
    st.builds(
        category,
        st.sampled_from(["a", "b", "c"]),
        prompts=st.lists(st.sampled_from(["red", "ruby", "rose"]), min_size=1, unique=True),
        review=st.sampled_from([0.1, 0.5]),
        mode=st.sampled_from(["enforce", "shadow"]),
        description=st.sampled_from(["Red.", "Rouge."]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one["id"],
)


@settings(deadline=None)
@given(CATEGORIES, CATEGORIES)
def test_policies_without_changes_are_equal_and_those_with_are_not(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    old, new = policy_of(*before), policy_of(*after)
    assert (changes(old, new) == ()) == (old == new)
    if old.digest != new.digest:
        assert "no decision can change: " not in " ".join(consequences(old, new))


# ---------------------------------------------------------------- the command


def diffed(*arguments: object, given: bytes | None = None) -> Any:
    return CliRunner().invoke(cli, ["policy", "diff", *map(str, arguments)], input=given)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_bytes(policy_bytes(category()))
    new.write_bytes(policy_bytes(category(review=0.4)))
    return old, new


def test_command_exits_as_diff_does(files: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = files
    assert diffed(old, old, "--format", "table").exit_code == 0
    assert diffed(old, new).exit_code == 1
    missing = diffed(old, tmp_path / "nowhere.yaml")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "nowhere.yaml:1:1: the file cannot be read" in missing.stderr


def test_files_that_differ_in_comments_are_the_same_policy(files: tuple[Path, Path]) -> None:
    old, new = files
    new.write_bytes(b"# a comment\n" + old.read_bytes())
    done = diffed(old, new, "--format", "table")
    assert (done.exit_code, done.stdout.splitlines()[1]) == (0, "the same policy")


def test_old_version_may_come_from_standard_input(files: tuple[Path, Path]) -> None:
    old, new = files
    done = diffed("-", new, given=old.read_bytes())
    assert done.exit_code == 1
    first = json.loads(done.stdout.splitlines()[0])
    assert first == {
        "kind": "changed",
        "where": "colour.red",
        "what": "review",
        "old": "0.5",
        "new": "0.4",
    }
    assert diffed("-", "-", given=old.read_bytes()).exit_code == 2


def test_invalid_version_is_refused_with_its_problems(files: tuple[Path, Path]) -> None:
    old, _ = files
    done = diffed(old, "-", given=b"version: 1\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "standard input:1:1: the policy has no `categories`; add it" in done.stderr


def test_people_get_a_line_for_each_change(files: tuple[Path, Path]) -> None:
    done = diffed(*files, "--format", "table")
    assert "colour.red\n  ~ review: 0.5 → 0.4\n" in done.stdout
    assert "what is certain\n  colour.red: probabilities from 0.4 to below 0.5" in done.stdout
