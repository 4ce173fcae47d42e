"""``imagewarden policy fit-head``: what it learns, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.fakes import FakeEncoder
from tests.policy_factory import compiled_of
from worker.authoring.embed_examples import Embedded
from worker.authoring.examples import Example
from worker.authoring.head_file import placeholder, written
from worker.cli import cli
from worker.commands.policy_calibrate import CalibrateOptions, PolicyFile, calibrate_examples
from worker.commands.policy_calibrate import fit_options as calibrate_options
from worker.commands.policy_fit_head import HeadOptions, draft_of, fit_examples
from worker.commands.render import Exit
from worker.errors import Misconfigured
from worker.heads import parse_head
from worker.policy import Policy
from worker.policy_yaml import load_policy
from worker.types import Embedding, EmbeddingKey, ImageFacts

ENCODER = FakeEncoder()
PLAIN = HeadOptions()
POLICY = """\
# what a person wrote
version: 1
id: test
model: fake
contrast: [blue]
categories:
  - id: colour.red
    prompts: [red]   # as wine
    review: 0.5
    block: 0.9

  # on its own
  - {id: colour.green, prompts: [green], review: 0.5}
"""


def examples(
    shift: float = 6.0, count: int = 120, *, seed: int = 0, sources: int = 1
) -> list[Example]:
    """Noise; of those that show red, every other one, the first number is larger by ``shift``."""
    random = np.random.default_rng(seed)
    made = []
    for place in range(count):
        rows = random.standard_normal((1, ENCODER.info.dimension))
        rows[0, 0] += shift if place % 2 else 0.0
        rows /= np.linalg.norm(rows)
        sha256 = hashlib.sha256(f"{seed} {place}".encode()).hexdigest()
        facts = ImageFacts(sha256, None, "image/png", 8, 8, 99, 1, (0,))
        key = EmbeddingKey(sha256, ENCODER.info.digest, "sha256:p")
        made.append(
            Example(
                name=f"{place}.png",
                label="red" if place % 2 else "none",
                embedding=Embedding(key, rows.astype(np.float16), facts),
                shows={"colour.red": bool(place % 2)},
                otherwise=None,
                source=f"{place // 2 % sources}" if sources > 1 else None,
            )
        )
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def fit(
    path: Path,
    given: Sequence[Example] | None = None,
    category: str = "colour.red",
    options: HeadOptions = PLAIN,
) -> Policy:
    draft = draft_of(path, category, options)
    found = Embedded(examples() if given is None else given, ())
    assert fit_examples(draft, ENCODER, found, options) is Exit.ALL_ALLOWED
    return load_policy(path)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# ---------------------------------------------------------------- what it writes


def test_category_has_the_head_and_a_calibration_that_is_in_force(path: Path) -> None:
    policy = fit(path)
    red = policy.categories[0]
    assert red.head is not None
    assert (red.head.file, red.head.weight) == ("heads/red.safetensors", 0.5)
    assert red.head.space == ENCODER.info.space
    assert compiled_of(policy, ENCODER).calibrated == (True, False)


def test_everything_else_in_the_policy_stays_as_it_was_written(path: Path) -> None:
    fit(path)
    written = path.read_text()
    for line in POLICY.splitlines():
        assert line in written


def test_provenance_says_what_the_head_was_fitted_on_and_how_good_it_is(path: Path) -> None:
    fit(path, examples(sources=3))
    provenance = json.loads((path.parent / "heads" / "red.json").read_text())
    assert (provenance["positives"], provenance["negatives"]) == (60, 60)
    assert provenance["space"] == ENCODER.info.space
    value, low, high = provenance["auroc"]
    assert 0.8 < low <= value <= high <= 1
    assert set(provenance["auroc_on_sources_never_seen"]) == {"0", "1", "2"}
    assert set(provenance["auroc_by_weight_of_the_head"]) == {"0", "0.25", "0.75"}


def test_category_that_the_policy_lacks_is_added_on_trial(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [replace(e, shows={"colour.teal": e.shows["colour.red"]}) for e in examples()]
    policy = fit(path, given, "colour.teal")
    teal = policy.categories[-1]
    assert (teal.id, teal.mode, teal.prompts) == ("colour.teal", "shadow", ())
    assert teal.head is not None and teal.head.weight == 1.0
    assert compiled_of(policy, ENCODER).calibrated == (False, False, True)
    assert "imagewarden policy promote" in capsys.readouterr().err


def test_fitting_again_keeps_the_file_and_the_weight_that_the_policy_says(path: Path) -> None:
    fit(path, options=HeadOptions(weight=0.7, file="heads/mine.safetensors"))
    head = fit(path, examples(seed=1)).categories[0].head
    assert head is not None
    assert (head.file, head.weight) == ("heads/mine.safetensors", 0.7)


def test_head_that_the_policy_names_already_need_not_be_there_yet(path: Path) -> None:
    path.write_text(POLICY.replace("prompts: [red]   # as wine", "head: heads/red.safetensors"))
    head = fit(path).categories[0].head
    assert head is not None and head.weight == 1.0


def test_equal_examples_give_equal_files(path: Path) -> None:
    fit(path)
    before = everything(path.parent)
    fit(path)
    assert everything(path.parent) == before


def test_dry_run_writes_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(path.parent)
    fit(path, options=HeadOptions(dry_run=True))
    assert everything(path.parent) == before
    assert "colour.red" in capsys.readouterr().out


# ---------------------------------------------------------------- on what it is fitted


def test_calibration_is_fitted_on_images_that_the_head_had_not_seen(path: Path) -> None:
    """A head learns noise by heart; a calibration on what it knows would be sure of it."""
    path.write_text(POLICY.replace("prompts: [red]   # as wine", "head: heads/red.safetensors"))
    given = examples(shift=1.5, count=100)
    policy = fit(path, given)
    [head] = [category.head for category in policy.categories if category.head]
    logits = np.array(
        [float(e.embedding.rows[0] @ np.array(head.vector)) + head.bias for e in given]
    )
    shows = np.array([e.shows["colour.red"] for e in given])
    by_heart = (logits[shows][:, None] > logits[~shows][None, :]).mean()
    said = json.loads((path.parent / "heads" / "red.json").read_text())["auroc"][0]
    assert said < by_heart - 0.05


def test_images_for_testing_are_not_learned_from(path: Path) -> None:
    given = [replace(e, split="test" if i >= 80 else "train") for i, e in enumerate(examples())]
    fit(path, given)
    provenance = json.loads((path.parent / "heads" / "red.json").read_text())
    assert provenance["positives"] + provenance["negatives"] == 80
    fit(path, given[:80])
    assert "head" in path.read_text()


def test_calibrating_on_what_the_head_was_fitted_on_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def calibrated(given: Sequence[Example]) -> str:
        file = PolicyFile.read(path)
        options = CalibrateOptions()
        calibrate_examples(
            *(file, ENCODER, Embedded(given, ()), calibrate_options(file, options), options),
            meanings={},
        )
        return capsys.readouterr().out

    fit(path)
    before = path.read_text()
    assert "its head was fitted on 120 of these images" in " ".join(calibrated(examples()).split())
    assert path.read_text() == before
    calibrated(examples(seed=1))
    assert path.read_text() != before


# ---------------------------------------------------------------- what it refuses


def refused(path: Path, given: Sequence[Example], options: HeadOptions = PLAIN) -> str:
    """Why; and nothing was written."""
    before = everything(path.parent)
    with pytest.raises(Misconfigured) as error:
        fit(path, given, options=options)
    assert everything(path.parent) == before
    return str(error.value)


@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0, float("nan")])
def test_weight_that_leaves_the_prompts_or_the_head_nothing_is_refused(
    path: Path, weight: float
) -> None:
    assert "above 0 and below 1" in refused(path, examples(), HeadOptions(weight=weight))


def test_head_of_another_category_is_not_written_over(path: Path) -> None:
    fit(path)
    options = HeadOptions(file="heads/red.safetensors")
    with pytest.raises(Misconfigured, match=r"is the head of colour\.red; name another"):
        draft_of(path, "wine.red", options)


def test_head_of_another_policy_is_not_written_over(path: Path) -> None:
    fit(path)
    path.write_text(POLICY)
    assert "red.safetensors is there already" in refused(path, examples())


def test_weight_without_prompts_is_refused(path: Path) -> None:
    with pytest.raises(Misconfigured, match="has no prompts"):
        draft_of(path, "colour.teal", HeadOptions(weight=0.7))


@pytest.mark.parametrize("file", ["../red.safetensors", "/tmp/red.safetensors"])
def test_file_outside_the_policys_folder_is_refused(path: Path, file: str) -> None:
    assert "leads out of the policy's folder" in refused(path, examples(), HeadOptions(file=file))


def test_one_class_is_refused(path: Path) -> None:
    assert "60 images show it and 0 do not" in refused(path, examples()[1::2])


def test_embedding_that_is_not_finite_is_refused(path: Path) -> None:
    given = examples()
    rows = np.full_like(given[3].embedding.rows, np.nan)
    given[3] = replace(given[3], embedding=replace(given[3].embedding, rows=rows))
    assert "the embedding of 3.png is not finite" in refused(path, given)


def test_target_that_the_images_cannot_show_leaves_all_as_it_was(path: Path) -> None:
    path.write_text(POLICY.replace("block: 0.9", "block: {target: {fpr: 0.001}, value: 0.9}"))
    assert "nothing was written" in refused(path, examples())


def test_head_is_what_it_was_where_the_policy_cannot_be_written(path: Path) -> None:
    fit(path)
    draft = draft_of(path, "colour.red", PLAIN)
    path.write_text(path.read_text() + "# edited meanwhile\n")
    before = everything(path.parent)
    with pytest.raises(Misconfigured, match="edited meanwhile"):
        fit_examples(draft, ENCODER, Embedded(examples(seed=1), ()), PLAIN)
    assert everything(path.parent) == before


def test_interrupted_write_leaves_the_head_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "heads" / "red.safetensors"
    with pytest.raises(KeyboardInterrupt), written(path, placeholder(), {}):
        raise KeyboardInterrupt
    assert not everything(tmp_path)
    with written(path, placeholder(), {"a": 1}):
        pass
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), written(path, b"half", {}):
        raise KeyboardInterrupt
    assert everything(tmp_path) == before
    parse_head(path.read_bytes(), "red.safetensors")


# ---------------------------------------------------------------- before a model is loaded


def labelled(folder: Path, labels: Sequence[str]) -> Path:
    rows = [("path", "label")]
    for place, label in enumerate(labels):
        Image.new("RGB", (8, 8)).save(folder / f"{place}.png")
        rows.append((f"{place}.png", label))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def command(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["policy", "fit-head", str(path), *arguments])


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["red"] * 30, "30 images show it and 0 do not; a head needs at least 20 of each"),
        (["red"] * 5 + ["other"] * 30, "5 images show it and 30 do not"),
        (["green"] * 30, "no image to learn from is labelled as colour.red"),
    ],
)
def test_labels_that_can_teach_nothing_are_told_at_once(
    path: Path, labels: list[str], sentence: str
) -> None:
    done = command(path, "colour.red", "--labels", str(labelled(path.parent, labels)))
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert path.read_text() == POLICY


def test_category_that_is_no_id_is_refused(path: Path) -> None:
    file = labelled(path.parent, ["red"] * 20 + ["other"] * 20)
    done = command(path, "no id!", "--labels", str(file))
    assert done.exit_code == 2
    assert path.read_text() == POLICY
