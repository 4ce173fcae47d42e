"""Which images are held out together."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.authoring.examples import Example, Labels
from worker.authoring.folds import FOLDS, folds_of, near_duplicates
from worker.types import Embedding, EmbeddingKey, ImageFacts


def embedding(name: str, hash_: str | None = None, direction: float = 0.0) -> Embedding:
    """Of an image with these bytes; its embedding lies at so many radians."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    rows = np.array([[np.cos(direction), np.sin(direction)]], dtype=np.float16)
    facts = ImageFacts(sha256, hash_, "image/png", 8, 8, 9, 1, (0,))
    return Embedding(EmbeddingKey(sha256, "m", "p"), rows, facts)


def pdq(*bits: int) -> str:
    """A hash in which these bits are set."""
    return f"{sum(1 << bit for bit in bits):064x}"


def example(number: int, source: str | None = None, split: str | None = None) -> Example:
    return Example(str(number), "x", embedding(str(number)), source=source, split=split)


def folds(sources: list[str | None], labels: Labels, groups: list[int] | None = None):  # type: ignore[no-untyped-def]
    examples = [example(number, source) for number, source in enumerate(sources)]
    own = np.arange(len(sources)) if groups is None else np.array(groups)
    return folds_of(examples, labels, own)


def test_hashes_that_differ_in_few_bits_are_near_duplicates_by_way_of_others_too() -> None:
    near, far, further = pdq(*range(31)), pdq(*range(62)), pdq(*range(100, 164))
    hashes = [pdq(), near, far, further]
    groups = near_duplicates([embedding(str(n), h) for n, h in enumerate(hashes)])
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_hashes_that_differ_in_more_bits_are_not_however_alike_their_embeddings() -> None:
    one, other = embedding("a", pdq()), embedding("b", pdq(*range(32)))
    assert len(set(near_duplicates([one, other]).tolist())) == 2


def test_images_without_a_hash_are_near_duplicates_where_their_embeddings_are_all_but_equal() -> (
    None
):
    found = near_duplicates(
        [embedding("a", pdq()), embedding("b", None, 0.01), embedding("c", None, 0.19)]
    )
    assert found[0] == found[1] != found[2]


def test_the_same_bytes_are_near_duplicates() -> None:
    groups = near_duplicates([embedding("a", None, 0.0), embedding("a", None, 2.0)])
    assert groups[0] == groups[1]


def test_no_images_have_no_groups() -> None:
    assert near_duplicates([]).tolist() == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=30, max_size=80))
def test_a_group_is_never_divided_and_folds_are_numbered(rows: list[tuple[int, bool]]) -> None:
    groups, labels = np.array([g for g, _ in rows]), np.array([y for _, y in rows])
    try:
        fold = folds([None] * len(rows), labels, groups.tolist()).fold
    except ValueError:
        return
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in groups)
    assert set(fold.tolist()) <= set(range(FOLDS))


def test_folds_have_their_share_of_positives() -> None:
    labels = np.arange(100) < 20
    found = folds([None] * 100, labels)
    assert [int(labels[found.fold == fold].sum()) for fold in range(FOLDS)] == [4] * FOLDS
    assert "nobody said where all images that show it come from" in found.warning


def test_whole_sources_are_held_out_where_positives_come_from_three() -> None:
    sources: list[str | None] = [f"site{number % 4}" for number in range(80)]
    found = folds(sources, np.arange(80) % 20 < 10)
    assert found.by_source and found.warning is None
    for source in set(sources):
        inside = found.fold[[each == source for each in sources]]
        assert len(set(inside.tolist())) == 1


def test_of_two_sources_none_is_held_out_and_the_figures_are_said_to_be_in_source() -> None:
    sources: list[str | None] = [f"site{number % 2}" for number in range(80)]
    found = folds(sources, np.arange(80) % 20 < 10)
    assert not found.by_source
    assert "come from 2 sources, so these figures are in-source" in found.warning


def test_a_source_for_each_image_is_none_to_be_held_out() -> None:
    found = folds([f"file{number}" for number in range(60)], np.arange(60) < 20)
    assert not found.by_source
    assert "--source-until" in found.warning


def test_sources_are_not_held_out_where_most_positives_come_from_one() -> None:
    sources: list[str | None] = ["main"] * 50 + ["a", "b", "c"] * 10
    found = folds(sources, np.arange(80) % 2 == 0)
    assert not found.by_source
    assert "too uneven" in found.warning


def test_a_split_for_testing_is_held_out_alone() -> None:
    examples = [example(n, split="test" if n < 10 else None) for n in range(40)]
    found = folds_of(examples, np.arange(40) % 2 == 0, np.arange(40))
    assert found.fold.tolist() == [0] * 10 + [-1] * 30
    assert found.warning is None


def test_a_split_that_shares_near_duplicates_is_told_of() -> None:
    examples = [example(n, split="test" if n < 10 else None) for n in range(40)]
    groups = np.arange(40)
    groups[[20, 21]] = 0
    found = folds_of(examples, np.arange(40) % 2 == 0, groups)
    assert found.warning is not None and "2 images to fit on are near-duplicates" in found.warning


def test_images_that_are_all_alike_have_no_folds() -> None:
    with pytest.raises(ValueError, match="which are unlike"):
        folds([None] * 40, np.arange(40) < 20, [0] * 20 + list(range(20, 40)))
