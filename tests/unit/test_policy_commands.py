"""The commands of policy editors on real files, with a model that sees colours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from structlog.testing import capture_logs

from tests.fakes import COLOURS, FakeEncoder
from tests.policy_factory import category, policy_bytes
from worker.authoring.prompt_study import Candidate
from worker.commands.labelled import LabelOptions
from worker.commands.policy_explain import explain_images
from worker.commands.policy_prompts import read_candidates, study_prompts
from worker.commands.policy_test import test_policies as run_tests
from worker.commands.render import Exit, Format
from worker.errors import Misconfigured
from worker.policy_yaml import InvalidPolicy
from worker.settings import Settings
from worker.settings_load import load_settings

LOADED: list[FakeEncoder] = []


def load(_: Settings) -> FakeEncoder:
    LOADED.append(FakeEncoder())
    return LOADED[-1]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    LOADED.clear()
    with capture_logs():  # the command line lets only warnings through
        yield


def settings(policy: Path, **keys: Any) -> Settings:
    return load_settings({"policies": (str(policy),), "decode": {"processes": 1}, **keys})


def picture(path: Path, *colours: str) -> Path:
    """A still image, or an animation of these colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (32, 32), COLOURS[colour]) for colour in colours]
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(path, **more)
    return path


def written(path: Path, *categories: Any, **keys: Any) -> Path:
    path.write_bytes(policy_bytes(*categories, **keys))
    return path


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return written(
        tmp_path / "policy.yaml",
        category(prompts=["red", "black"], contrast=["blue", "green"]),
        tenants={"kids": {"colour.red": {"review": 0}}},
    )


# ---------------------------------------------------------------- explain


def explained(
    policy: Path, *targets: object, tenant: str | None = None, format: Format = Format.JSONL
) -> Exit:
    named = [str(target) for target in targets]
    return asyncio.run(explain_images(settings(policy), named, tenant, format, load))


def test_explanation_is_a_json_object_for_each_image(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [picture(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue")]
    assert explained(policy, *images) is Exit.ALL_ALLOWED
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["image"], first["decision"]) == (str(images[0]), "review")
    assert (second["image"], second["decision"]) == (str(images[1]), "allow")
    [said] = first["categories"]
    assert said["spoken"][0]["text"] == "red"
    assert said["spoken"][0]["without"]["action"] in {"allow", "review"}
    assert said["needed"][0]["action"] == "allow"


def test_explanation_for_people_says_what_another_action_would_take(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explained(policy, picture(tmp_path / "red.png", "red"), format=Format.TABLE)
    said = capsys.readouterr().out
    assert "review, because of colour.red" in said
    assert "allow would take a probability 0." in said
    assert "lower (below 0.5)" in said


def test_explanation_of_an_animation_says_which_frame_decided(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "animation.gif", "blue", "green", "red")
    explained(policy, image, format=Format.TABLE)
    assert "frame 3 of 3 decided" in capsys.readouterr().out


def test_tenant_without_overrides_is_pointed_out(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "blue.png", "blue")
    explained(policy, image, tenant="kids")
    first = capsys.readouterr()
    assert (json.loads(first.out)["decision"], first.err) == ("review", "")
    explained(policy, image, tenant="kidz")
    second = capsys.readouterr()
    assert json.loads(second.out)["decision"] == "allow"
    assert "overrides nothing for 'kidz'" in second.err


def test_file_that_is_no_image_is_named_and_the_others_are_explained(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    image = picture(tmp_path / "red.png", "red")
    assert explained(policy, tmp_path / "broken.png", image) is Exit.NOT_EXAMINED
    said = capsys.readouterr()
    assert json.loads(said.out)["image"] == str(image)
    assert said.err.startswith(f"imagewarden: {tmp_path / 'broken.png'}: ")


def test_query_of_a_url_is_not_shown(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:9/photo.jpg?token=hidden"
    assert explained(policy, url, format=Format.TABLE) is Exit.NOT_EXAMINED
    said = capsys.readouterr()
    assert said.err.startswith(
        "imagewarden: http://127.0.0.1:9/photo.jpg: fetch: address_forbidden"
    )
    assert "hidden" not in said.out + said.err


def test_missing_image_is_a_sentence_before_a_model_is_loaded(policy: Path) -> None:
    with pytest.raises(Misconfigured, match="is no file, no folder and no URL"):
        explained(policy, "nowhere.jpg")
    assert LOADED == []


# ---------------------------------------------------------------- prompts


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A folder for each label; what shows red is a little alike what does not."""
    for number in range(12):
        for label, colour in (("red", (255, 20 * number, 0)), ("other", (0, 20 * number, 255))):
            path = tmp_path / "labelled" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(path)
    return tmp_path / "labelled"


def studied(
    policy: Path,
    labels: Path,
    *ids: str,
    candidates: Path | None = None,
    format: Format = Format.JSONL,
) -> Exit:
    options = LabelOptions(labels)
    return study_prompts(settings(policy), policy, options, ids, candidates, format, load)


def test_study_says_what_each_text_does(
    policy: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studied(policy, labels)
    found = json.loads(capsys.readouterr().out)
    assert (found["category"], found["positives"], found["negatives"]) == ("colour.red", 12, 12)
    assert {one["text"] for one in found["texts"]} == {"red", "black", "blue", "green"}
    assert found["auroc"].keys() == {"value", "low", "high"}
    assert {one["verdict"] for one in found["texts"]} <= {"helps", "hurts", "no difference shown"}


def test_images_are_embedded_once_however_many_phrasings_are_tried(
    policy: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = tmp_path / "tried.txt"
    tried.write_text("".join(f"- nonsense {number}\n" for number in range(100)))
    studied(policy, labels, candidates=tried, format=Format.TABLE)
    assert sum(LOADED[-1].images) == 24
    said = capsys.readouterr().out
    assert "what each of 100 candidates would add" in said
    assert "100 were tried" in said


def test_candidate_that_is_there_already_is_left_out_aloud(
    policy: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = tmp_path / "tried.txt"
    tried.write_text("red\n- a cup\n")
    studied(policy, labels, candidates=tried)
    said = capsys.readouterr()
    assert [one["text"] for one in json.loads(said.out)["candidates"]] == ["a cup"]
    assert said.err == "left out 'red': colour.red has it already\n"
    tried.write_text("red\n")
    with pytest.raises(Misconfigured, match="has all of the candidates already"):
        studied(policy, labels, candidates=tried)


def test_candidates_for_several_categories_are_refused(tmp_path: Path, labels: Path) -> None:
    policy = written(tmp_path / "two.yaml", category(), category("colour.green", prompts=["green"]))
    tried = tmp_path / "tried.txt"
    tried.write_text("a cup\n")
    with pytest.raises(Misconfigured, match=r"--category, one of: colour\.red, colour\.green"):
        studied(policy, labels, candidates=tried)
    assert LOADED == []


def test_unknown_category_is_refused_before_a_model_is_loaded(policy: Path, labels: Path) -> None:
    with pytest.raises(Misconfigured, match=r"is named 'colour'; there are: colour\.red"):
        studied(policy, labels, "colour")
    assert LOADED == []


def test_category_with_too_few_images_says_so(
    policy: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((labels / "red").iterdir())[3:]:
        path.unlink()
    studied(policy, labels, format=Format.TABLE)
    assert "needs at least 10 images that show it and 10 that do not" in capsys.readouterr().out


def test_labels_that_mean_no_category_are_refused(policy: Path, tmp_path: Path) -> None:
    picture(tmp_path / "odd" / "cats" / "1.png", "red")
    with pytest.raises(Misconfigured, match="means a category"):
        studied(policy, tmp_path / "odd")


def test_candidates_are_read_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "tried.txt"
    file.write_text("\ufeff# what to try\n\n+ a gun\n  a pistol \n-a toy\n- a toy\n++ plus\n")
    assert read_candidates(file) == [
        Candidate("prompt", "a gun"),
        Candidate("prompt", "a pistol"),
        Candidate("contrast", "a toy"),
        Candidate("prompt", "+ plus"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no phrasing in it"),
        (b"# nothing\n", "there is no phrasing in it"),
        (b"a gun\n-\n", r"tried\.txt:2: there is no text after '-'"),
        (b"+ a gun\n- a gun\n", r"tried\.txt:2: 'a gun' is both a prompt and a contrast"),
        (b"\xff\xfe", "cannot be read as text in UTF-8"),
    ],
)
def test_malformed_candidates_are_refused_with_their_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "tried.txt"
    file.write_bytes(content)
    with pytest.raises(Misconfigured, match=said):
        read_candidates(file)


def test_missing_candidates_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read"):
        read_candidates(tmp_path / "nowhere.txt")


# ---------------------------------------------------------------- test


def ran(*files: Path, format: Format = Format.JSONL) -> Exit:
    return asyncio.run(run_tests(settings(files[0]), files, format, load))


def with_tests(path: Path, *tests: Any, **keys: Any) -> Path:
    return written(path, category(), tests=list(tests), **keys)


def test_policy_whose_tests_hold_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "images" / "red.png", "red")
    picture(tmp_path / "blue.png", "blue")
    file = with_tests(
        tmp_path / "policy.yaml",
        {"image": "images/red.png", "expect": "review"},
        {"image": "blue.png", "expect": "allow"},
        {"image": "blue.png", "expect": "review", "tenant": "kids"},
        tenants={"kids": {"colour.red": {"review": 0}}},
    )
    assert ran(file) is Exit.ALL_ALLOWED
    said = capsys.readouterr()
    assert [json.loads(line)["holds"] for line in said.out.splitlines()] == [True] * 3
    assert said.err == "all 3 tests hold\n"


def test_failing_test_says_what_was_expected_what_came_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "red.png", "red")
    file = with_tests(tmp_path / "policy.yaml", {"image": "red.png", "expect": "allow"})
    assert ran(file) is Exit.NOT_ALL_ALLOWED
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["expected"], found["got"], found["holds"]) == ("allow", "review", False)
    assert (found["category"], found["error"]) == ("colour.red", None)
    assert said.err == "1 of 1 tests failed\n"
    ran(file, format=Format.TABLE)
    assert "FAILS" in (table := capsys.readouterr().out)
    assert "colour.red 1.00, review from 0.5" in table


def test_image_that_cannot_be_decoded_fails_its_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    file = with_tests(tmp_path / "policy.yaml", {"image": "broken.png", "expect": "review"})
    assert ran(file) is Exit.NOT_ALL_ALLOWED
    found = json.loads(capsys.readouterr().out)
    assert found["got"] == "undetermined"
    assert found["error"].startswith("not_an_image: ")


def test_tests_of_several_policies_run_by_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "green.png", "green")
    test = {"image": "green.png", "expect": "review"}
    one = written(tmp_path / "one.yaml", category(contrast=["green"]), id="one", tests=[test])
    other = written(
        tmp_path / "two.yaml", category("green", prompts=["green"]), id="two", tests=[test]
    )
    assert ran(one, other) is Exit.NOT_ALL_ALLOWED
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(Path(line["policy"]).name, line["holds"]) for line in lines] == [
        ("one.yaml", False),
        ("two.yaml", True),
    ]


def test_missing_images_of_all_policies_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    test = {"image": "nowhere.png", "expect": "review"}
    files = [written(tmp_path / f"{n}.yaml", category(), tests=[test]) for n in (1, 2)]
    with pytest.raises(InvalidPolicy) as refused:
        ran(*files)
    assert [problem.path for problem in refused.value.problems] == [str(file) for file in files]
    assert all("nowhere.png is not there" in p.message for p in refused.value.problems)
    assert LOADED == []


def test_policy_without_tests_is_refused_as_it_would_prove_nothing(policy: Path) -> None:
    with pytest.raises(Misconfigured, match="has no `tests`; add some"):
        ran(policy)
