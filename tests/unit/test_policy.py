from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.policy_factory import category, policy_bytes, policy_of
from worker.errors import Misconfigured
from worker.policy import (
    BlockRate,
    Calibration,
    Dampener,
    Decision,
    Override,
    Policy,
    PolicyTest,
    Prompt,
    Target,
    Targets,
    Thresholds,
    check_model,
    margin_digest,
)
from worker.policy_yaml import InvalidPolicy, load_policy, parse_policy
from worker.types import FramePlan, ModelInfo, PreprocessSpec
from worker.yaml_values import MAX_BYTES

POLICIES = Path(__file__).parent / "policies"
BROKEN = sorted(POLICIES.glob("broken_*.yaml"))
REFUSED = re.compile(r"^# refused: (.*)$", re.MULTILINE)

INFO = ModelInfo(
    name="fake",
    weights_digest="sha256:weights",
    preprocess=PreprocessSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    precision="float32",
    dimension=8,
    logit_scale=100.0,
)


def problems_of(raw: bytes) -> list[str]:
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(raw, "policy.yaml")
    return [f"{p.line}:{p.column}: {p.message}" for p in refused.value.problems]


# ---------------------------------------------------------------- reading


def test_a_policy_that_writes_only_what_is_required_gets_the_defaults() -> None:
    policy = load_policy(POLICIES / "minimal.yaml")
    (weapons,) = policy.categories

    assert policy.templates == ("{}",)
    assert policy.on_error is Decision.REVIEW
    assert policy.plan == FramePlan()
    assert policy.overrides == ()
    assert (weapons.id, weapons.parent, weapons.description) == ("weapons", None, "")
    assert weapons.prompts == (Prompt("a gun", 1.0),)
    assert (weapons.aggregate, weapons.mode) == ("logmeanexp", "enforce")
    assert weapons.calibration is None
    assert weapons.thresholds == Thresholds(review=0.5, block=None)
    assert not weapons.block_uncalibrated
    assert (weapons.exceptions, weapons.severity, weapons.head) == ((), (), None)
    assert weapons.at_least_frames == 1
    assert (policy.lists, policy.max_block_rate, policy.tests) == ((), None, ())


def test_every_key_of_a_policy_is_read() -> None:
    policy = load_policy(POLICIES / "full.yaml")
    firearm, blade, gambling = policy.categories

    assert (policy.version, policy.id) == (7, "full")
    assert policy.model == "ViT-L-14/datacomp_xl_s13b_b90k"
    assert policy.templates == ("a photo of {}", "{}")
    assert policy.on_error is Decision.BLOCK
    assert policy.plan == FramePlan(max_frames=4, views="tiles")
    assert firearm.description == "A real firearm, held or displayed. Toys go to review."
    assert firearm.prompts == (
        Prompt("a handgun"),
        Prompt("a person aiming a gun", 0.5),
        Prompt("an assault rifle"),
    )
    assert firearm.exceptions == (
        Dampener((Prompt("a drawing", 2), Prompt("a painting")), weight=0.5),
        Dampener((Prompt("a film poster"),)),
    )
    assert firearm.calibration == Calibration(f"sha256:{1:064}", scale=1.31, bias=-2.07)
    assert blade.calibration == Calibration(f"sha256:{4:064}", "temperature", scale=0.7)
    assert gambling.calibration == Calibration(
        f"sha256:{3:064}", "isotonic", points=((-2.0, 0.01), (0.5, 0.01), (1.5, 0.8))
    )
    assert firearm.thresholds == Thresholds(0.35, 0.91)
    assert firearm.targets == Targets(block=Target("fpr", 0.005))
    assert [(band.name, band.probability) for band in firearm.severity] == [
        ("low", 0.35),
        ("medium", 0.6),
        ("high", 0.9),
    ]
    assert (firearm.at_least_frames, blade.at_least_frames) == (2, 1)
    assert (firearm.mode, blade.mode, gambling.mode) == ("enforce", "shadow", "off")
    assert (firearm.aggregate, blade.aggregate, gambling.aggregate) == ("logmeanexp", "max", "mean")
    assert (firearm.parent, blade.parent, gambling.parent) == ("weapons", "sharp-things", None)
    assert (firearm.block_uncalibrated, blade.block_uncalibrated) == (False, True)
    assert policy.max_block_rate == BlockRate(share=0.3, per_seconds=600.0, min_requests=200)
    assert policy.tests == (
        PolicyTest("images/hair-dryer.jpg", Decision.ALLOW),
        PolicyTest("images/knife.jpg", Decision.REVIEW, "kids"),
    )


def test_a_list_has_each_hash_of_its_file_once_in_small_letters() -> None:
    bad, good = load_policy(POLICIES / "full.yaml").lists

    assert (bad.id, bad.action, bad.distance, bad.file) == (
        *("known-bad", Decision.BLOCK, 31),
        "lists/known-bad.txt",
    )
    assert (good.id, good.action, good.distance) == ("known-good", Decision.ALLOW, 0)
    assert bad.hashes == good.hashes == {"f0" * 32, "00" * 31 + "ff"}
    assert bad.digest == good.digest


def test_a_category_is_contrasted_with_the_policys_texts_and_its_own_which_win() -> None:
    firearm, _, gambling = load_policy(POLICIES / "full.yaml").categories

    assert gambling.contrast == (Prompt("an ordinary photo"), Prompt("food", 2))
    assert firearm.contrast == (
        Prompt("a toy gun"),
        Prompt("an ordinary photo"),
        Prompt("food", 3),
    )


def test_a_tenant_keeps_the_thresholds_it_does_not_override() -> None:
    assert load_policy(POLICIES / "full.yaml").overrides == (
        Override("kids", "gambling", Thresholds(0.2, 0.3)),
        Override("kids", "weapons.firearm", Thresholds(0.1, 0.91)),
        Override("marketplace", "weapons.firearm", Thresholds(0.35, 0.8)),
    )


@pytest.mark.parametrize(
    ("per", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_a_duration_is_a_number_and_a_unit(per: str, seconds: float) -> None:
    limits = {"max_block_rate": {"per": per, "share": 0.5, "min_requests": 1}}
    rate = policy_of(category(), limits=limits).max_block_rate
    assert rate is not None
    assert rate.per_seconds == seconds


# ---------------------------------------------------------------- targets


UNSOLVED = category(block={"target": {"fpr": 0.01}})


def test_a_target_that_is_not_solved_is_refused_with_what_solves_it() -> None:
    [problem] = problems_of(policy_bytes(UNSOLVED))
    assert problem.endswith(
        "`block` has a `target` and no `value`; run `imagewarden policy calibrate` to solve it"
    )


def test_whoever_solves_targets_reads_them_without_a_value() -> None:
    precise = category("b", review={"target": {"precision": 0.9}})
    raw = policy_bytes(UNSOLVED, precise)
    first, second = parse_policy(raw, "policy.yaml", unsolved=True).categories

    assert first.thresholds == Thresholds(0.5, None)
    assert first.targets == Targets(block=Target("fpr", 0.01))
    assert second.thresholds == Thresholds(None, None)
    assert second.targets == Targets(review=Target("precision", 0.9))


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_policy_is_refused_with_all_its_problems_where_they_stand(path: Path) -> None:
    expected = REFUSED.findall(path.read_text())
    with pytest.raises(InvalidPolicy) as refused:
        load_policy(path)

    assert expected, "a broken policy says in comments what is to be refused"
    told = str(refused.value).replace(f"{POLICIES}/", "{folder}/")
    assert told.splitlines() == [f"{{folder}}/{path.name}:{line}" for line in expected]


def test_a_line_of_a_list_that_is_no_hash_is_refused_by_file_and_line(tmp_path: Path) -> None:
    lines = ["# a comment", "f0" * 32, "f0f0", "", "F0" * 32 + " # twice", "https://h/p.jpg"]
    (tmp_path / "bad.txt").write_text("\n".join(lines))
    lists = [{"id": "bad", "file": "bad.txt", "action": "block"}]
    raw = policy_bytes(category(), lists=lists)
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(raw, f"{tmp_path}/policy.yaml")

    do = "write 64 hexadecimal digits, or # before a comment"
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/bad.txt:3:1: 'f0f0' is no PDQ hash; {do}",
        f"{tmp_path}/bad.txt:6:1: 'https://h/p.jpg' is no PDQ hash; {do}",
    ]


def test_a_list_of_something_else_is_refused_in_few_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(bytes(range(256)) * 100)
    lists = [{"id": "bad", "file": "bad.txt", "action": "block"}]
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(policy_bytes(category(), lists=lists), f"{tmp_path}/policy.yaml")
    assert len(refused.value.problems) == 11
    assert refused.value.problems[-1].message.endswith("more lines are no PDQ hashes either")


def test_a_list_without_hashes_yet_is_one(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("# none so far\n")
    lists = [{"id": "bad", "file": "bad.txt", "action": "block"}]
    assert policy_of(category(), folder=tmp_path, lists=lists).lists[0].hashes == frozenset()


def test_an_image_to_test_with_is_asked_for_only_by_who_tests(tmp_path: Path) -> None:
    (tmp_path / "there.jpg").write_bytes(b"")
    tests = [{"image": name, "expect": "allow"} for name in ("there.jpg", "none.jpg")]
    path = tmp_path / "policy.yaml"
    path.write_bytes(policy_bytes(category(), tests=tests))

    assert len(load_policy(path).tests) == 2
    with pytest.raises(InvalidPolicy, match=r"none.jpg is not there; add the image or remove"):
        load_policy(path, images=True)


def test_test_image_whose_name_no_file_can_have_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(policy_bytes(category(), tests=[{"image": "x" * 300, "expect": "allow"}]))
    with pytest.raises(InvalidPolicy, match=r"x is not there; add the image or remove"):
        load_policy(path, images=True)


def test_every_level_of_the_file_refuses_unknown_keys() -> None:
    calibration = {"method": "platt", "scale": 1, "bias": 0, "for": f"sha256:{1:064}", "x5": 1}
    problems = problems_of(
        policy_bytes(
            category(
                prompts=[{"text": "red", "x1": 1}],
                review={"value": 0.1, "x2": 1, "target": {"fpr": 0.1, "x3": 1}},
                x4=1,
                calibration=calibration,
            ),
            x6=1,
            tenants={"shop": {"colour.red": {"review": 0.2, "x7": 1}}},
        )
    )
    unknown = (re.search(r"unknown key `(x\d)`", problem) for problem in problems)
    assert sorted(found[1] for found in unknown if found) == [f"x{n}" for n in range(1, 8)]


def test_a_file_over_the_size_limit_is_refused() -> None:
    (problem,) = problems_of(policy_bytes(category()) + b" " * MAX_BYTES)
    assert (
        problem == f"1:1: the file is larger than {MAX_BYTES} bytes; split it into several policies"
    )


def test_a_file_that_is_not_utf8_is_refused_with_its_place() -> None:
    assert problems_of(b"version: 1\nid: caf\xe9") == [
        "2:8: this is not UTF-8; save the file as UTF-8"
    ]


@pytest.mark.parametrize(
    "raw",
    [b"- " * 5000, b"a: \x00", b"\xff\xfe", b"a: *b", b"version: " + b"9" * 9999],
    ids=["nested", "control character", "UTF-16", "unknown alias", "endless number"],
)
def test_bytes_that_are_no_policy_are_refused_and_crash_nothing(raw: bytes) -> None:
    assert problems_of(raw)


def test_tags_of_python_objects_construct_nothing() -> None:
    raw = b"version: !!python/object/apply:os.system ['exit 1']\nid: a\nmodel: m\ncategories: []"
    assert problems_of(raw)[0].startswith("1:10: `version` is a list")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match=re.escape(f"{tmp_path}/none.yaml:1:1: ")):
        load_policy(tmp_path / "none.yaml")


def test_anchors_share_a_list_between_categories() -> None:
    raw = b"""
version: 1
id: anchors
model: fake
categories:
  - {id: a, prompts: [x], contrast: &plain [a photo, food], review: 0.5}
  - {id: b, prompts: [y], contrast: *plain, review: 0.5}
"""
    first, second = parse_policy(raw, "anchors.yaml").categories
    assert first.contrast == second.contrast == (Prompt("a photo"), Prompt("food"))


def test_a_problem_with_what_a_merge_key_brought_is_placed_at_the_mapping() -> None:
    raw = b"""
version: 1
id: merge
model: fake
categories:
  - &first {id: a, prompts: [x], contrast: [z], review: 2}
  - {<<: *first, id: b}
"""
    assert problems_of(raw) == [
        "6:57: `review` is 2; write a number from 0 to 1",
        "7:5: `review` is 2; write a number from 0 to 1",
    ]


# ---------------------------------------------------------------- digests


def edited(text: str, *edits: tuple[str, str]) -> Policy:
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return parse_policy(text.encode(), str(POLICIES / "edited.yaml"))


FULL = (POLICIES / "full.yaml").read_text()


@pytest.mark.parametrize(
    "edit",
    [
        ("# Every key", "# Each key"),
        ("version: 7", "version: 8"),
        ("id: full", "id: other"),
        ("Toys go to review", "Toys do not"),
        ('["a photo of {}", "{}"]', '["{}", "a photo of {}"]'),
        ('["a handgun", "an assault rifle",', '["an assault rifle", "a handgun", "a handgun",'),
        ("positives: 212", "positives: 213"),
        ("prevalence: 0.004", "prevalence: 0.005"),
        ("date: 2026-01-31", "date: 2026-02-01"),
        ("{target: {fpr: 0.005}, value: 0.91}", "0.91"),
        ("    aggregate: logmeanexp\n", ""),
        ("fpr: 0.005", "fpr: 0.006"),
        ("./lists/known-bad.txt", "lists/known-bad.txt"),
        ("tenant: kids", "tenant: shop"),
        ("- a film poster", "- {prompts: [a film poster], weight: 1}"),
    ],
    ids=lambda edit: edit[1][:30],
)
def test_what_cannot_change_a_decision_leaves_the_digest_as_it_is(edit: tuple[str, str]) -> None:
    assert edited(FULL, edit).digest == edited(FULL).digest


@pytest.mark.parametrize(
    "edit",
    [
        ("datacomp_xl_s13b_b90k", "openai"),
        ("a photo of {}", "an image of {}"),
        ("an ordinary photo", "a plain photo"),
        ("text: food, weight: 2", "text: food, weight: 4"),
        ("on_error: block", "on_error: allow"),
        ("views: tiles", "views: pad"),
        ("max_frames: 4", "max_frames: 5"),
        ("id: weapons.firearm", "id: weapons.gun"),
        ("an assault rifle", "a shotgun"),
        ("aggregate: mean", "aggregate: logmeanexp"),
        ("scale: 1.31", "scale: 1.32"),
        ("bias: -2.07", "bias: -2.08"),
        ("0001", "0003"),
        ("review: 0.35", "review: 0.36"),
        ("value: 0.91", "value: 0.92"),
        ("mode: shadow", "mode: enforce"),
        ("    block_uncalibrated: true\n", ""),
        ("block: 0.80", "block: 0.81"),
        ("a film poster", "a film still"),
        ("a painting", "a sketch"),
        ("], weight: 0.5}", "], weight: 0.6}"),
        ("medium: 0.6", "medium: 0.7"),
        ("at_least: 2", "at_least: 3"),
        ("[1.5, 0.8]", "[1.5, 0.9]"),
        ("scale: 0.7", "scale: 0.6"),
        ("share: 0.30", "share: 0.31"),
        ("per: 10m", "per: 9m"),
        ("action: allow, distance: 0", "action: review, distance: 0"),
        ("distance: 0", "distance: 1"),
        ("id: known-good", "id: known"),
    ],
    ids=lambda edit: edit[1][:30],
)
def test_what_can_change_a_decision_changes_the_digest(edit: tuple[str, str]) -> None:
    old, new = edit
    edits = [edit]
    if old.startswith("id: weapons"):
        edits.append((old.removeprefix("id: ") + ":", new.removeprefix("id: ") + ":"))
    assert edited(FULL, *edits).digest != edited(FULL).digest


def firearm_digest(policy: Policy, info: ModelInfo = INFO) -> str:
    return margin_digest(policy, policy.categories[0], info)


@pytest.mark.parametrize(
    "edit",
    [
        ("a photo of {}", "an image of {}"),
        ("an ordinary photo", "a plain photo"),
        ("a toy gun", "a toy pistol"),
        ("an assault rifle", "a shotgun"),
        ("weight: 0.5", "weight: 0.6"),
        ("aggregate: logmeanexp", "aggregate: mean"),
        ("views: tiles", "views: pad"),
        ("max_frames: 4", "max_frames: 5"),
        ("a film poster", "a film still"),
        ("], weight: 0.5}", "], weight: 0.6}"),
        ("at_least: 2", "at_least: 3"),
    ],
    ids=lambda edit: edit[1],
)
def test_what_can_change_a_margin_makes_a_calibration_void(edit: tuple[str, str]) -> None:
    assert firearm_digest(edited(FULL, edit)) != firearm_digest(edited(FULL))


@pytest.mark.parametrize(
    "edit",
    [
        ("Toys go to review", "Toys do not"),
        ("review: 0.35", "review: 0.36"),
        ("scale: 1.31", "scale: 1.32"),
        ("mode: enforce", "mode: shadow"),
        ("a knife", "a dagger"),
        ("block: 0.80", "block: 0.81"),
        ("medium: 0.6", "medium: 0.7"),
        ("share: 0.30", "share: 0.31"),
    ],
    ids=lambda edit: edit[1],
)
def test_what_cannot_change_a_margin_leaves_a_calibration_good(edit: tuple[str, str]) -> None:
    assert firearm_digest(edited(FULL, edit)) == firearm_digest(edited(FULL))


@pytest.mark.parametrize(
    ("change", "void"),
    [
        ({"weights_digest": "sha256:others"}, True),
        ({"preprocess": replace(INFO.preprocess, resize_mode="squash")}, True),
        ({"logit_scale": 20.0}, True),
        ({"logit_scale": 100.00001}, False),
        ({"precision": "bfloat16"}, False),
    ],
    ids=str,
)
def test_a_calibration_is_good_for_one_model_at_any_precision(
    change: dict[str, Any], void: bool
) -> None:
    policy = edited(FULL)
    assert (firearm_digest(policy, replace(INFO, **change)) != firearm_digest(policy)) is void


# ---------------------------------------------------------------- the model


def test_a_policy_for_another_model_is_refused_by_name() -> None:
    policy = policy_of(category(), model="ViT-B-32/openai")
    with pytest.raises(Misconfigured, match=r"'ViT-B-32/openai', but 'fake' is loaded"):
        check_model(policy, INFO)


def test_a_policy_for_the_model_that_is_loaded_passes() -> None:
    check_model(policy_of(category()), INFO)
