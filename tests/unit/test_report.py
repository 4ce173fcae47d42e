"""The page of ``policy calibrate --report``."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.fitted import ENCODER, calibrated, example, examples, fit, thumbnail
from tests.markup import Page
from tests.policy_factory import category, policy_bytes
from worker.authoring.calibrate import Options
from worker.authoring.embed_examples import Embedded
from worker.authoring.examples import Example
from worker.authoring.mistakes import mistakes
from worker.authoring.policy_file import PolicyFile
from worker.authoring.report import calibration_page
from worker.authoring.results import Calibrated, ThresholdReport
from worker.cli import cli
from worker.commands.policy_calibrate import CalibrateOptions, calibrate_examples
from worker.policy import Calibration, Target
from worker.types import Float16Rows

TODAY = date(2026, 11, 21)
HOSTILE = '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}\x00'


def page_of(run: Calibrated) -> Page:
    page = Page(calibration_page(run, TODAY))
    assert page.problems == page.loaded() == page.dangling() == []
    return page


def test_head_of_the_page_tells_what_it_is_about() -> None:
    text = page_of(
        calibrated(notes=["One source only."], left_out=[("b.jpg", "no such file")])
    ).text
    for said in (
        "“test”",
        "fake",
        "dddddddddddd",
        "2026-11-21",
        "One source only.",
        "no such file",
    ):
        assert said in text


def test_each_fitted_category_has_four_charts_with_title_and_description() -> None:
    page = page_of(calibrated())
    assert len(page.all("svg")) == len(page.all("desc")) == 4
    for said in ("Reliability diagram of colour.red", "ROC curve of colour.red", "15"):
        assert said in page.text


def test_every_header_cell_says_what_it_heads() -> None:
    assert {cell.get("scope") for cell in page_of(calibrated()).all("th")} == {"col", "row"}


def test_markup_in_names_labels_and_sentences_stays_text() -> None:
    of = examples(name=HOSTILE, label=HOSTILE, source=HOSTILE, thumbnail=thumbnail())
    hostile = fit(
        of, warnings=(HOSTILE,), thresholds=(ThresholdReport("block", 0.5, refused=HOSTILE),)
    )
    page = page_of(
        calibrated(
            of,
            [hostile],
            notes=[HOSTILE],
            left_out=[(HOSTILE, HOSTILE)],
            meanings={HOSTILE: "colour.red"},
        )
    )
    assert not page.all("script")
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "7*7" in page.text


def test_hostile_category_ids_break_no_link() -> None:
    of = [example({'"#><b>': n % 2 == 0}, name=f"{n}.jpg") for n in range(60)]
    page = page_of(calibrated(of, [fit(of, '"#><b>')]))
    assert not page.all("b")


def test_category_that_was_not_fitted_says_why_and_has_no_charts() -> None:
    refused = fit([], refused="12 images show it; at least 20 are needed.")
    page = page_of(calibrated(fits=[refused]))
    assert "12 images show it; at least 20 are needed." in page.text
    assert not page.all("svg")


def test_target_that_was_not_met_says_why() -> None:
    why = "41 negatives cannot show an FPR of 0.1 %: at least 3,000 are needed."
    threshold = ThresholdReport("block", None, Target("fpr", 0.001), refused=why)
    assert why in page_of(calibrated(fits=[fit(examples(), thresholds=(threshold,))])).text


def test_category_with_a_target_that_was_not_met_is_said_to_be_as_it_was() -> None:
    threshold = ThresholdReport("block", None, Target("fpr", 0.001), refused="too few")
    page = page_of(calibrated(fits=[fit(examples(), thresholds=(threshold,))]))
    assert "Its calibration was not written into the policy" in page.text
    assert "Block: too few." in page.text


def test_category_measured_on_unseen_sources_says_so() -> None:
    page = page_of(calibrated(fits=[fit(examples(), by_source=True, fitted_on=(50, 150))]))
    assert "50 that show it and 150 that do not; whole sources held out" in page.text


def test_category_without_thresholds_is_judged_from_one_half_on() -> None:
    page = page_of(calibrated(fits=[fit(examples(), thresholds=())]))
    assert "as if it flagged from one half on" in page.text


def test_isotonic_calibration_and_ties_are_drawn() -> None:
    of = examples()
    isotonic = Calibration("x", "isotonic", points=((-1.0, 0.0), (1.0, 1.0)))
    made = fit(of, calibration=isotonic, prevalence=0.01)
    tied = fit(of, calibration=isotonic, prevalence=0.01, held_out=made.labels.astype(float))
    page = page_of(calibrated(of, [tied]))
    assert "isotonic, 2 points" in page.text
    assert "nan" not in page.text.lower()


def test_worst_mistakes_come_first_each_with_its_prompts() -> None:
    run = calibrated()
    [made] = run.fits
    wrong = mistakes(run, made, 3)
    assert [one.probability for one in wrong.false_alarms] == sorted(
        (one.probability for one in wrong.false_alarms), reverse=True
    )
    assert wrong.false_alarms[0].probability == made.held_out[~made.labels].max()
    assert wrong.misses[0].probability == made.held_out[made.labels].min()
    assert {one.action for one in wrong.misses} == {"allow"}
    [score] = {
        (one.score.loudest_for, one.score.loudest_against) for one in wrong.misses if one.score
    }
    assert score == ("red", "blue")


def test_mistakes_in_all_are_those_on_the_wrong_side_of_the_lowest_threshold() -> None:
    run = calibrated()
    [made] = run.fits
    wrong = mistakes(run, made, 2)
    assert len(wrong.false_alarms) == 2
    assert wrong.false_alarms_in_all == int((made.held_out[~made.labels] >= 0.4).sum())
    assert wrong.misses_in_all == int((made.held_out[made.labels] < 0.4).sum())


def test_image_without_a_thumbnail_is_named_all_the_same() -> None:
    some = examples(thumbnail=thumbnail())
    page = page_of(
        calibrated([replace(one, thumbnail=None) if n % 8 else one for n, one in enumerate(some)])
    )
    assert page.all("img")
    assert "no thumbnail" in page.text


def test_without_any_thumbnails_no_room_is_left_for_them() -> None:
    page = page_of(calibrated(examples(thumbnail=None)))
    assert "no thumbnail" not in page.text
    assert "Misses" in page.text


def test_thumbnails_have_a_name_for_those_who_do_not_see_them() -> None:
    images = page_of(calibrated(examples(thumbnail=thumbnail()))).all("img")
    assert images
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg") for image in images)  # type: ignore[union-attr]


def test_slices_that_differ_are_told_of() -> None:
    of = [
        example({"colour.red": n % 4 == 0}, name=f"{n}.jpg", source="good" if n % 3 else "bad")
        for n in range(600)
    ]
    made = fit(of)
    bad = np.array([one.source == "bad" for one in of])
    page = page_of(calibrated(of, [fit(of, held_out=np.where(bad, 0.95, made.held_out * 0.1))]))
    assert "source: good" in page.text
    assert "no difference that chance would not make" not in page.text


def test_two_hundred_categories_stay_a_few_megabytes_and_all_can_be_reached() -> None:
    of = examples(80, thumbnail=thumbnail())
    fits = [fit(of) for _ in range(200)]
    html = calibration_page(calibrated(of, fits), TODAY)
    assert len(html) < 12_000_000
    assert html.count('<a href="#category-199">') == 2


def test_equal_runs_give_equal_pages() -> None:
    assert calibration_page(calibrated(), TODAY) == calibration_page(calibrated(), TODAY)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_it_light_and_dark(tmp_path: Path) -> None:
    light = calibration_page(calibrated(examples(thumbnail=thumbnail())), TODAY)
    dark = light.replace('id="dark">', 'id="dark" checked>')
    assert mean_level(light, tmp_path / "light") > 200
    assert mean_level(dark, tmp_path / "dark") < 60


def mean_level(html: str, at: Path) -> float:
    """Of the grey levels of what chromium shows, 0..255."""
    page, picture = at.with_suffix(".html"), at.with_suffix(".png")
    page.write_text(html)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,2400"]
    profile = f"--user-data-dir={at}"
    subprocess.run(
        ["chromium", *flags, profile, f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return float(np.asarray(Image.open(picture).convert("L")).mean())


def test_examples_of_other_categories_are_no_part_of_a_section() -> None:
    silent: list[Example] = [example({}, otherwise=None, name=f"{n}.png") for n in range(50)]
    of = [*silent, *examples()]
    page = page_of(calibrated(of, [fit(of)]))
    assert "50 of 200 images show it" in page.text


def test_command_writes_the_page_where_it_is_told_to(tmp_path: Path) -> None:
    policy, place = tmp_path / "policy.yaml", tmp_path / "report.html"
    policy.write_bytes(policy_bytes(category()))
    rng = np.random.default_rng(5)
    of = [
        replace(one, embedding=replace(one.embedding, rows=blurred(one, rng)))
        for one in examples(80, thumbnail=thumbnail())
    ]
    calibrate_examples(
        PolicyFile.read(policy),
        ENCODER,
        Embedded(of, [("missing.jpg", "there is no such file")]),
        Options(),
        CalibrateOptions(report=place),
        meanings={"x": "colour.red"},
    )
    page = Page(place.read_text())
    assert page.problems == page.loaded() == page.dangling() == []
    assert "20 of 80 images show it" in page.text
    assert "there is no such file" in page.text


def blurred(one: Example, rng: np.random.Generator) -> Float16Rows:
    """Its embedding, and noise of its own, so that no two are near-duplicates."""
    rows = one.embedding.rows + rng.normal(0, 0.12, one.embedding.rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_place_that_cannot_be_written_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    policy, labels = tmp_path / "policy.yaml", tmp_path / "labels.csv"
    policy.write_bytes(policy_bytes(category()))  # for a model that does not exist
    labels.write_text("path,label\na.jpg,red\nb.jpg,blue\n")
    command = ["policy", "calibrate", str(policy), "--labels", str(labels)]
    done = CliRunner().invoke(
        cli, [*command, "--report", str(tmp_path / "missing" / "report.html")]
    )
    assert done.exit_code == 2
    assert "its folder is missing" in done.output
