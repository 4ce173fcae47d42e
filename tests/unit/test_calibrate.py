"""Calibrating a policy on labelled images, with an encoder that sees colours."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_bytes
from worker.calibrate import CategoryReport, calibrate_policy
from worker.errors import Misconfigured
from worker.policy_yaml import load_policy

EACH = 30


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_bytes(policy_bytes(category(block=0.9), category("colour.green", prompts=["green"])))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Images that are rather red, green or blue, and labelled so, with one in ten mistaken."""
    random = np.random.default_rng(8)
    rows = []
    for index, name in enumerate(("red", "green", "blue")):
        for number in range(EACH):
            colour = random.normal(90, 50, 3)
            colour[index] += 70
            pixels = np.broadcast_to(colour.clip(0, 255).astype(np.uint8), (8, 8, 3))
            path = f"{name}-{number}.png"
            Image.fromarray(pixels.copy()).save(tmp_path / path)
            rows.append((path, "blue" if name == "red" and number % 10 == 0 else name))
    return write(tmp_path, rows)


def write(folder: Path, rows: list[tuple[str, str]]) -> Path:
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


def reports_of(policy: Path, labels: Path, **options: object) -> dict[str, CategoryReport]:
    reports, _ = calibrate_policy(policy, labels, encoder=FakeEncoder(), **options)  # type: ignore[arg-type]
    return {report.category: report for report in reports}


def test_a_calibrated_policy_counts_as_calibrated(policy: Path, labels: Path) -> None:
    reports = reports_of(policy, labels)
    assert compiled_of(load_policy(policy), FakeEncoder()).uncalibrated == ()
    red = reports["colour.red"]
    assert (red.positives, red.negatives) == (27, 63)
    assert red.refused is None
    assert red.auroc is not None and red.auroc > 0.8
    assert red.scale is not None and red.scale > 0
    assert red.ece is not None and red.ece < 0.3
    assert red.reached is not None and set(red.reached) == {"review", "block"}
    shown, others = red.reached["review"]
    assert shown > others


def test_what_is_written_is_what_was_fitted_with_its_evidence(policy: Path, labels: Path) -> None:
    red = reports_of(policy, labels)["colour.red"]
    calibration = load_policy(policy).categories[0].calibration
    assert calibration is not None and red.scale is not None and red.bias is not None
    assert calibration.scale == pytest.approx(red.scale, abs=1e-4)
    assert calibration.bias == pytest.approx(red.bias, abs=1e-4)
    text = policy.read_text()
    for evidence in ('"positives": 27', '"negatives": 63', '"data": "sha256:', '"ece":', '"date":'):
        assert evidence in text


def test_calibrating_again_writes_the_same(policy: Path, labels: Path) -> None:
    reports_of(policy, labels)
    once = policy.read_bytes()
    reports_of(policy, labels)
    assert policy.read_bytes() == once


def test_a_prevalence_moves_the_bias_alone_and_is_kept(policy: Path, labels: Path) -> None:
    own = reports_of(policy, labels)["colour.red"]
    rarer = reports_of(policy, labels, prevalence={"colour.red": 0.01})["colour.red"]
    assert own.bias is not None and rarer.bias is not None
    assert rarer.scale == own.scale
    assert rarer.bias == pytest.approx(own.bias + np.log(0.01 / 0.99) - np.log(0.3 / 0.7))
    assert reports_of(policy, labels)["colour.red"].bias == rarer.bias
    assert reports_of(policy, labels, prevalence=0.3)["colour.red"].bias == pytest.approx(own.bias)


def test_labels_may_mean_categories_of_another_name(policy: Path, labels: Path) -> None:
    reports = reports_of(policy, labels, label_map={"blue": "colour.green", "green": "colour.red"})
    assert reports["colour.green"].positives == 33
    assert reports["colour.red"].positives == 57


def test_a_category_with_few_images_is_left_as_it_was(
    policy: Path, labels: Path, tmp_path: Path
) -> None:
    with labels.open(newline="") as file:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    green = [row for row in rows if row[1] == "green"]
    write(tmp_path, [row for row in rows if row not in green[9:]])
    report = reports_of(policy, labels)["colour.green"]
    assert report.refused is not None and "at least 10" in report.refused
    assert load_policy(policy).categories[1].calibration is None


def test_a_category_whose_prompts_tell_the_opposite_is_left_as_it_was(
    policy: Path, labels: Path
) -> None:
    report = reports_of(policy, labels, label_map={"blue": "colour.red", "red": "colour.green"})
    refused = report["colour.red"].refused
    assert refused is not None and "reword its prompts" in refused


def test_images_that_cannot_be_examined_are_left_out_and_named(
    policy: Path, labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "red-1.png").write_bytes(b"<html>")
    (tmp_path / "red-2.png").unlink()
    reports, labelled = calibrate_policy(policy, labels, encoder=FakeEncoder())
    assert [path.name for path, _ in labelled.unexaminable] == ["red-1.png", "red-2.png"]
    assert reports[0].positives == 25


def test_progress_counts_up_to_all_images(policy: Path, labels: Path) -> None:
    seen: list[tuple[int, int]] = []
    reports_of(policy, labels, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (3 * EACH, 3 * EACH)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_map": {"red": "colour.rde"}}, "no category is named 'colour.rde'"),
        ({"label_map": {"rde": "colour.red"}}, "no image is labelled 'rde'"),
        ({"prevalence": {"colour.rde": 0.1}}, "no category is named 'colour.rde'"),
        ({"prevalence": 0.0}, "the prevalence 0 is no share"),
        ({"prevalence": 1}, "the prevalence 1 is no share"),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_written(
    policy: Path, labels: Path, options: dict[str, object], sentence: str
) -> None:
    before = policy.read_bytes()
    with pytest.raises(Misconfigured, match=sentence):
        reports_of(policy, labels, **options)
    assert policy.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"file,label\na.png,red\n", "lacks the columns"),
        (b"", "lacks the columns"),
        (b"path,label\na.png,cat\n", "means a category"),
        (b"path,label\na.png,red\nb.png\n", "none of the labelled images can be examined"),
        (b"path,label\n\xff\xfe.png,red\n", "cannot be read as CSV"),
    ],
)
def test_a_labels_file_that_is_wrong_is_refused(
    policy: Path, tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(Misconfigured, match=sentence):
        reports_of(policy, tmp_path / "labels.csv")


def test_a_policy_for_another_model_is_refused(tmp_path: Path, labels: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes(policy_bytes(category(), model="pocket"))
    with pytest.raises(Misconfigured, match="written for the model 'pocket'"):
        reports_of(path, labels)
