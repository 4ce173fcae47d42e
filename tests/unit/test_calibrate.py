"""Calibrating a policy on examples, and writing what came of it into the policy's text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_bytes
from worker.authoring.calibrate import Options, Unseen, calibrate
from worker.authoring.evidence import stated_prevalences, with_calibrations
from worker.authoring.examples import Example
from worker.authoring.folds import Folds
from worker.authoring.results import Calibrated, Fit
from worker.errors import Misconfigured
from worker.policy_yaml import parse_policy
from worker.types import Embedding, EmbeddingKey, ImageFacts

TODAY = date(2026, 1, 31)
ENCODER = FakeEncoder()
RED, GREEN = "colour.red", "colour.green"
CATEGORIES = (category(RED, block=0.9), category(GREEN, prompts=["green"]))


def drawn(each: int = 30, *, mistaken: int = 10, sources: int = 1) -> list[Example]:
    """Images that are rather red, green or blue, and labelled so; of the red ones, one in
    ``mistaken`` as blue."""
    random = np.random.default_rng(8)
    examples = []
    for index, name in enumerate(("red", "green", "blue")):
        for number in range(each):
            colour = random.normal(90, 50, 3)
            colour[index] += 70
            label = "blue" if name == "red" and number % mistaken == 0 else name
            source = f"site{number % sources}"
            examples.append(example(f"{name}-{number}", label, colour, source))
    return examples


def example(name: str, label: str, colour: Sequence[float], source: str | None = None) -> Example:
    pixels = np.full((1, 8, 8, 3), np.clip(colour, 0, 255), dtype=np.uint8)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    # so unlike that none is another's near-duplicate
    hash_ = hashlib.sha256(b"hash" + name.encode()).hexdigest()
    embedding = Embedding(
        EmbeddingKey(sha256, ENCODER.info.digest, "sha256:" + "0" * 64),
        ENCODER.encode_images(pixels).astype(np.float16),
        ImageFacts(sha256, hash_, "image/png", 8, 8, 9, 1, (0,)),
    )
    return Example(name, label, embedding, {f"colour.{label}": True}, source=source)


def calibrated(
    examples: Sequence[Example],
    *categories: dict[str, object],
    unseen: dict[str, Unseen] | None = None,
    **options: object,
) -> Calibrated:
    policy = parse_policy(policy_bytes(*(categories or CATEGORIES)), "test.yaml", unsolved=True)
    compiled = compiled_of(policy, ENCODER)
    return calibrate(compiled, ENCODER.info, examples, Options(**options), unseen=unseen)  # type: ignore[arg-type]


def fits(*args: object, **options: object) -> dict[str, Fit]:
    return {fit.category: fit for fit in calibrated(*args, **options).fits}  # type: ignore[arg-type]


def written(found: Calibrated, *categories: dict[str, object]) -> str:
    return with_calibrations(policy_bytes(*(categories or CATEGORIES)).decode(), found, TODAY)


def test_a_calibrated_policy_counts_as_calibrated() -> None:
    text = written(calibrated(drawn()))
    assert compiled_of(parse_policy(text.encode(), "test.yaml"), ENCODER).uncalibrated == ()


def test_a_fit_tells_how_good_it_is_on_images_that_were_held_out() -> None:
    red = fits(drawn())[RED]
    assert (red.refused, red.positives, red.negatives, red.fitted_on) == (None, 27, 63, (27, 63))
    assert red.auroc and red.auroc.value > 0.8
    assert red.ece and red.ece.value < 0.3
    assert len(red.held_out) == len(red.folds) == len(red.places) == 90
    assert set(red.folds.tolist()) == set(range(5))
    review, block = red.thresholds
    assert (review.action, review.value, block.action, block.value) == ("review", 0.5, "block", 0.9)
    assert review.recall and review.fpr and review.recall.value > review.fpr.value


def test_what_is_held_out_has_no_part_in_its_own_probability() -> None:
    """With each label drawn by lot, an image that had a part would be better than a guess."""
    lots = np.random.default_rng(4).random(600) < 0.5
    examples = [
        replace(one, shows={RED: bool(lot)}) for one, lot in zip(drawn(200), lots, strict=True)
    ]
    red = fits(examples)[RED]
    if red.refused is None:
        right = np.where(red.labels, red.held_out, 1 - red.held_out)
        assert right.mean() == pytest.approx(0.5, abs=0.02)


def test_the_evidence_is_written_beside_the_fit() -> None:
    found = calibrated(drawn(), method="platt", prevalence={RED: 0.01})
    red = found.fits[0]
    assert red.calibration and red.ece and red.auroc
    [text, _] = parse_text(written(found))
    assert text == {
        "method": "platt",
        "scale": red.calibration.scale,
        "bias": red.calibration.bias,
        "for": red.calibration.fitted_for,
        "data": found.data,
        "positives": 27,
        "negatives": 63,
        "prevalence": 0.01,
        "auroc": round(red.auroc.value, 4),
        "ece": round(red.ece.value, 4),
        "ece_interval": [round(red.ece.low, 4), round(red.ece.high, 4)],
        "held_out": "5 folds",
        "date": "2026-01-31",
    }


def parse_text(text: str) -> list[dict[str, object]]:
    import json

    return [one.get("calibration") for one in json.loads(text)["categories"]]


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature", "auto"])
def test_what_is_written_by_any_method_is_read_back_as_it_was_fitted(method: str) -> None:
    found = calibrated(drawn(150), method=method)
    policy = parse_policy(written(found).encode(), "test.yaml")
    for fit, read in zip(found.fits, policy.categories, strict=True):
        assert fit.refused is None
        assert read.calibration == fit.calibration


def test_calibrating_again_writes_the_same() -> None:
    once = written(calibrated(drawn()))
    policy = parse_policy(once.encode(), "test.yaml")
    again = calibrate(compiled_of(policy, ENCODER), ENCODER.info, drawn())
    assert with_calibrations(once, again, TODAY) == once


def test_the_order_of_the_images_changes_neither_the_fit_nor_the_digest() -> None:
    one, other = calibrated(drawn()), calibrated(drawn()[::-1])
    assert one.data == other.data
    assert one.fits[0].calibration == other.fits[0].calibration


def test_a_prevalence_moves_the_bias_alone_and_can_be_read_back() -> None:
    own, rarer = fits(drawn())[RED], fits(drawn(), prevalence={RED: 0.01})[RED]
    assert own.calibration and rarer.calibration
    assert rarer.calibration.scale == own.calibration.scale
    expected = own.calibration.bias + np.log(0.01 / 0.99) - np.log(0.3 / 0.7)
    assert rarer.calibration.bias == pytest.approx(expected, abs=1e-4)
    assert rarer.ece == own.ece
    assert rarer.held_out.mean() < own.held_out.mean() / 3
    text = written(calibrated(drawn(), prevalence={RED: 0.01}))
    assert stated_prevalences(text) == {RED: 0.01}


def test_a_target_is_solved_and_its_value_written() -> None:
    wanted = category(RED, review={"target": {"recall": 0.7}}, block={"target": {"fpr": 0.1}})
    found = calibrated(drawn(100), wanted)
    review, block = found.fits[0].thresholds
    assert review.refused is None and block.refused is None
    assert review.recall and block.fpr
    assert review.recall.value > 0.7 and block.fpr.value < 0.1
    [read] = parse_policy(written(found, wanted).encode(), "test.yaml").categories
    assert (read.thresholds.review, read.thresholds.block) == (review.value, block.value)


def test_a_category_with_a_target_that_cannot_be_shown_stays_as_it_was() -> None:
    wanted = category(RED, review=0.2, block={"target": {"fpr": 0.001}, "value": 0.9})
    found = calibrated(drawn(), wanted)
    [fit] = found.fits
    assert fit.why_not_written is not None
    assert fit.why_not_written.startswith("block: 63 negatives cannot show an FPR of 0.1")
    assert written(found, wanted) == policy_bytes(wanted).decode()


@pytest.mark.parametrize(
    ("examples", "options", "sentence"),
    [
        (drawn(10), {}, "9 images show it and 21 do not; at least 10 of each are needed"),
        (
            [one for one in drawn() if one.label == "red"],
            {},
            "27 images show it and 0 do not; at least 10",
        ),
        ([one for one in drawn() if one.label == "blue"], {}, "0 images show it and 33 do not"),
        (
            [replace(one, shows={RED: one.label == "blue"}) for one in drawn()],
            {},
            "its margins are no higher for images that show it; reword its prompts",
        ),
        (drawn(), {"method": "isotonic"}, "isotonic regression needs at least 100 of each"),
        (
            [replace(one, split="test" if n % 10 == 0 else None) for n, one in enumerate(drawn())],
            {},
            "to test on; at least 10 of each are needed",
        ),
        (
            [replace(drawn()[n % 3 * 30 + 1], name=str(n)) for n in range(60)],
            {},
            "cannot be divided into folds: there are not two that show it",
        ),
    ],
    ids=["few", "one class", "other class", "opposite", "isotonic", "few to test on", "alike"],
)
def test_a_category_that_cannot_be_fitted_says_why_and_stays_as_it_was(
    examples: list[Example], options: dict[str, object], sentence: str
) -> None:
    found = calibrated(examples, CATEGORIES[0], **options)
    assert found.fits[0].refused is not None and sentence in found.fits[0].refused
    assert written(found, CATEGORIES[0]) == policy_bytes(CATEGORIES[0]).decode()


def test_a_split_for_testing_has_no_part_in_the_fit_and_all_the_figures() -> None:
    examples = [
        replace(one, split="test" if n % 3 == 0 else "train") for n, one in enumerate(drawn(60))
    ]
    fit = fits(examples)[RED]
    alone = fits([one for one in examples if one.split == "train"])[RED]
    assert fit.calibration == alone.calibration
    assert fit.fitted_on == (alone.positives, alone.negatives)
    assert all(examples[place].split == "test" for place in fit.places)
    [text, _] = parse_text(written(calibrated(examples)))
    assert text["held_out"] == f"a split of {fit.positives} + {fit.negatives}"


def test_whole_sources_are_held_out_and_the_file_says_so() -> None:
    found = calibrated(drawn(60, sources=4))
    assert found.fits[0].by_source
    assert parse_text(written(found))[0]["held_out"] == "4 folds of whole sources"


def test_a_weight_counts_as_so_many_images() -> None:
    examples = drawn()
    heavy = fits([replace(one, weight=2.0) for one in examples])[RED]
    plain = fits(examples)[RED]
    assert heavy.calibration and plain.calibration
    assert heavy.calibration.scale == pytest.approx(plain.calibration.scale, rel=0.1)
    greens = fits([replace(one, weight=9.0 if one.label == "red" else 1.0) for one in examples])
    assert greens[RED].calibration.bias > plain.calibration.bias + 1  # type: ignore[union-attr]


def test_margins_learnt_on_other_folds_take_the_place_of_the_policys_own() -> None:
    examples = drawn()
    places = np.arange(len(examples))
    margins = np.array([3.0 if one.says(RED) else -3.0 for one in examples])
    margins += np.random.default_rng(3).normal(0, 2, len(margins))
    unseen = {RED: Unseen(margins, Folds(places % 3, warning="of our own"))}
    red = fits(examples, unseen=unseen)[RED]
    assert red.margins.tolist() == margins.tolist()
    assert red.folds.tolist() == (places % 3).tolist()
    assert red.warnings == ("of our own",)


def test_margins_that_are_not_finite_are_refused() -> None:
    examples = drawn()
    margins = np.full(len(examples), np.nan)
    unseen = {RED: Unseen(margins, Folds(np.arange(len(examples)) % 3))}
    refused = fits(examples, unseen=unseen)[RED].refused
    assert refused is not None and "not finite" in refused


def test_an_embedding_that_is_not_finite_is_refused_by_name() -> None:
    examples = drawn()
    rows = examples[3].embedding.rows.copy()
    rows[0, 0] = np.nan
    examples[3] = replace(examples[3], embedding=replace(examples[3].embedding, rows=rows))
    with pytest.raises(Misconfigured, match="the embedding of red-3 is not finite"):
        calibrated(examples)


def test_an_embedding_of_another_model_is_refused_by_name() -> None:
    examples = drawn()
    short = replace(examples[3].embedding, rows=examples[3].embedding.rows[:, :5])
    examples[3] = replace(examples[3], embedding=short)
    with pytest.raises(Misconfigured, match="red-3 has 5 numbers, and those of fake have 32"):
        calibrated(examples)


def test_examples_of_which_nobody_said_anything_are_left_out() -> None:
    examples = [replace(one, otherwise=None) for one in drawn()]
    known = [replace(one, otherwise=False) for one in drawn()[:60]]
    assert fits([*known, *examples[60:]])[RED].fitted_on == (27, 33)
