"""Logistic heads: what they learn, by which folds, and what their file remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.fakes import FakeEncoder
from tests.policy_factory import category, policy_of, with_head
from worker.authoring.examples import Example, Floats, Labels
from worker.authoring.folds import folds_of
from worker.authoring.head_file import head_bytes, known_by_heart, written
from worker.authoring.heads import STRENGTHS, Learned, Logit, check_counts, learn, unseen_folds
from worker.errors import Misconfigured
from worker.heads import parse_head
from worker.policy import Head
from worker.types import Embedding, EmbeddingKey, ImageFacts

DIMENSION = 32


def image(name: str, rows: Floats) -> Embedding:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Embedding(
        key=EmbeddingKey(sha256, "sha256:m", "sha256:p"),
        rows=unit.astype(np.float16),
        facts=ImageFacts(
            sha256=sha256,
            perceptual_hash=None,
            media_type="image/png",
            width=8,
            height=8,
            bytes=100,
            frames=len(rows),
            rows=tuple(range(len(rows))),
        ),
    )


def images(labels: Labels, *, shift: float, seed: int = 0, frames: int = 1) -> list[Embedding]:
    """Of noise; in one frame of those that show it, the first number is larger by ``shift``."""
    random = np.random.default_rng(seed)
    made = []
    for place, shows in enumerate(labels):
        rows = random.standard_normal((frames, DIMENSION))
        rows[random.integers(frames), 0] += shift if shows else 0.0
        made.append(image(f"{seed} {place}", rows))
    return made


def halves(count: int) -> Labels:
    return np.arange(count) % 2 == 0


def learned(
    embeddings: Sequence[Embedding], labels: Labels, weights: Floats | None = None
) -> Learned:
    return learn(
        embeddings,
        labels,
        np.ones(len(labels)) if weights is None else weights,
        np.arange(len(labels)) // 2 % 5,
        np.arange(len(labels)),
    )


def told_apart(head: Logit, embeddings: Sequence[Embedding], labels: Labels) -> float:
    """AUROC of the loudest rows."""
    logits = np.array([head.of(one.rows).max() for one in embeddings])
    return float((logits[labels][:, None] > logits[~labels][None, :]).mean())


# ---------------------------------------------------------------- learning


def test_head_finds_in_new_images_what_it_was_shown() -> None:
    labels = halves(200)
    head = learned(images(labels, shift=6.0), labels).head
    assert told_apart(head, images(labels, shift=6.0, seed=1), labels) > 0.98
    assert abs(head.vector).argmax() == 0


def test_head_finds_the_one_frame_that_shows_it() -> None:
    labels = halves(200)
    head = learned(images(labels, shift=8.0, frames=4), labels).head
    assert told_apart(head, images(labels, shift=8.0, frames=4, seed=1), labels) > 0.95


def test_where_there_is_nothing_to_learn_the_strongest_penalty_is_taken() -> None:
    labels = halves(100)
    assert learned(images(labels, shift=0.0), labels).strength == STRENGTHS[0]


def test_unit_of_the_weights_means_nothing() -> None:
    labels = halves(80)
    embeddings = images(labels, shift=3.0)
    weights = np.where(labels, 1.0, 3.0)
    one, other = (learned(embeddings, labels, weights * unit) for unit in (1.0, 1000.0))
    assert one.strength == other.strength
    assert np.allclose(one.head.vector, other.head.vector, rtol=1e-3, atol=1e-4)


def test_heavier_images_count_for_more() -> None:
    labels = halves(80)
    embeddings = images(labels, shift=1.0)
    more = learned(embeddings, labels, np.where(labels, 10.0, 1.0)).head
    assert more.bias > learned(embeddings, labels).head.bias


def test_near_duplicates_of_what_is_held_out_are_not_learned_from() -> None:
    """Each image is there twice, in two folds, with a label that nothing but memory can tell."""
    random = np.random.default_rng(3)
    labels = np.tile(random.random(60) < 0.5, 2)
    once = images(labels[:60], shift=0.0)
    folds = np.concatenate([np.arange(60) % 4, (np.arange(60) + 1) % 4])
    by_heart = learn([*once, *once], labels, np.ones(120), folds, np.arange(120))
    honest = learn([*once, *once], labels, np.ones(120), folds, np.tile(np.arange(60), 2))
    assert by_heart.loss < 0.4
    assert honest.loss > 0.65


@pytest.mark.parametrize("shown", [0, 19, 81, 100])
def test_too_few_images_of_a_kind_are_refused_with_the_number_that_is_needed(shown: int) -> None:
    with pytest.raises(Misconfigured, match=f"^{shown} images show it .* at least 20 of each"):
        check_counts(np.arange(100) < shown)


def test_images_that_are_all_alike_are_refused() -> None:
    labels = halves(80)
    with pytest.raises(Misconfigured, match="near-duplicates"):
        learn(
            images(labels, shift=1.0),
            labels,
            np.ones(80),
            np.arange(80) // 2 % 5,
            np.where(labels, 0, np.arange(80)),
        )


# ---------------------------------------------------------------- folds


def examples(sources: Sequence[str | None], labels: Labels) -> list[Example]:
    embeddings = images(labels, shift=0.0)
    return [
        Example(name=str(place), label="", embedding=one, source=source)
        for place, (one, source) in enumerate(zip(embeddings, sources, strict=True))
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), min_size=40, max_size=80))
def test_source_that_never_shows_it_is_held_out_whole(said: list[tuple[bool, str]]) -> None:
    labels = np.array([shows for shows, _ in said])
    sources = ["shows" if shows else source for shows, source in said]
    if min(labels.sum(), (~labels).sum()) < 5:
        return
    folds = unseen_folds(examples(sources, labels), labels, np.arange(len(labels))).fold
    for source in set(sources) - {"shows"}:
        assert len({f for f, of in zip(folds, sources, strict=True) if of == source}) == 1


def test_source_that_shows_it_now_and_then_is_held_out_in_parts() -> None:
    labels = np.arange(100) < 40
    sources = ["mixed" if place < 70 else f"other {place % 3}" for place in range(100)]
    folds = unseen_folds(examples(sources, labels), labels, np.arange(100)).fold
    for shows in (True, False):
        of_mixed = {
            fold
            for fold, source, is_ in zip(folds, sources, labels, strict=True)
            if source == "mixed" and is_ == shows
        }
        assert len(of_mixed) == 5


def test_without_sources_the_folds_are_those_of_calibrations() -> None:
    labels = halves(60)
    given_ = examples([None] * 60, labels)
    duplicates = np.arange(60)
    assert np.array_equal(
        unseen_folds(given_, labels, duplicates).fold, folds_of(given_, labels, duplicates).fold
    )


# ---------------------------------------------------------------- files

ENCODER = FakeEncoder(DIMENSION)
SPACE = ENCODER.info.space
HEAD = Logit(np.linspace(-1, 1, DIMENSION, dtype=np.float32), 0.25)
DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]


def test_file_holds_the_head_and_what_it_is_for() -> None:
    head = parse_head(head_bytes(HEAD, space=SPACE, sha256s=DIGESTS), "heads/b.safetensors")
    assert head.vector == tuple(HEAD.vector.tolist())
    assert head.bias == HEAD.bias
    assert head.space == SPACE


def test_equal_heads_are_equal_files() -> None:
    files = {
        head_bytes(HEAD, space=SPACE, sha256s=digests, provenance={"positives": 3, "folds": 5})
        for digests in (DIGESTS, DIGESTS[::-1])
        for _ in range(5)
    }
    assert len(files) == 1


def test_file_takes_a_few_kilobytes() -> None:
    assert len(head_bytes(HEAD, space=SPACE, sha256s=DIGESTS * 20)) < 4096


def test_provenance_lies_beside_the_file_as_json(tmp_path: Path) -> None:
    path = tmp_path / "heads" / "b.safetensors"
    with written(path, head_bytes(HEAD, space=SPACE), {"positives": 3}):
        pass
    assert path.with_suffix(".json").read_text() == '{\n  "positives": 3\n}\n'
    assert {one.name for one in path.parent.iterdir()} == {"b.safetensors", "b.json"}


def known(folder: Path, digests: Sequence[str]) -> Mapping[str, str]:
    head = Head("red.safetensors", SPACE, SPACE, tuple(HEAD.vector.tolist()), HEAD.bias)
    policy = with_head(policy_of(category(), category("colour.other")), "colour.red", head)
    return known_by_heart(policy, folder, digests)


def test_head_knows_the_images_that_it_was_fitted_on(tmp_path: Path) -> None:
    path = tmp_path / "red.safetensors"
    path.write_bytes(head_bytes(HEAD, space=SPACE, sha256s=DIGESTS[:30]))
    assert list(known(tmp_path, DIGESTS)) == ["colour.red"]
    assert "fitted on 30 of these images" in known(tmp_path, DIGESTS)["colour.red"]
    assert not known(tmp_path, DIGESTS[30:])


def test_head_of_somebody_else_knows_no_image(tmp_path: Path) -> None:
    path = tmp_path / "red.safetensors"
    path.write_bytes(save({"vector": HEAD.vector}))
    assert not known(tmp_path, DIGESTS)


@pytest.mark.parametrize("content", [None, b"", b"no head"])
def test_what_is_no_head_knows_no_image(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "red.safetensors").write_bytes(content)
    assert not known(tmp_path, DIGESTS)
