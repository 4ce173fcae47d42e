"""Which images are held out together, so that what is measured on them is not what was learnt.

Near-duplicates are one image seen twice, and go into one fold. Images of one source resemble each
other in more than what they show; where a category's positives come from enough sources, whole
sources are held out, and the figures then say what to expect of a source that was never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Example, Labels
from worker.authoring.quantities import counted
from worker.types import Embedding

Groups = NDArray[np.intp]

FOLDS: Final = 5
_FEWEST_SOURCES: Final = 3  # of positives: with two, a fit would see one of them only
_PDQ_DIGITS: Final = 64
_PDQ_BITS: Final = 31  # at most so many of 256 differ: PDQ's authors' own limit for "the same"
# All but equal. Cosines tell little of likeness: with the pocket model photos of different guns
# reach .999, and one photo saved anew at three quarters of its size has .986, the median of 80.
_COSINE: Final = 0.9999
_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Folds:
    """``fold`` [images]: which one each is held out in, -1 for those that are never. ``by_source``
    says whether whole sources are; ``warning`` what to think of it."""

    fold: Groups
    by_source: bool = False
    warning: str | None = None


def near_duplicates(embeddings: Sequence[Embedding]) -> Groups:
    """[images]: equal numbers for images that are near-duplicates, directly or by way of others.

    Two are, if their PDQ hashes differ in at most 31 of 256 bits or, where one has none, their
    embeddings are all but equal: a cosine of at least .9999.
    """
    count = len(embeddings)
    hashes = [embedding.facts.perceptual_hash or "" for embedding in embeddings]
    hashed = np.array([len(hash_) == _PDQ_DIGITS for hash_ in hashes], dtype=np.bool_)
    signs = np.zeros((count, 4 * _PDQ_DIGITS), dtype=np.float32)
    for place in np.flatnonzero(hashed):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(hashes[place]), dtype=np.uint8))
        signs[place] = bits * 2.0 - 1.0
    if not count:
        return np.empty(0, dtype=np.intp)
    means = np.array([e.rows.astype(np.float32).mean(axis=0) for e in embeddings])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    pairs = []
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        both = hashed[block, None] & hashed[None, :]
        # of ±1, a product is the bits that agree less those that differ
        by_hash = signs[block] @ signs.T >= 4 * _PDQ_DIGITS - 2 * _PDQ_BITS
        by_embedding = means[block] @ means.T >= _COSINE
        rows, columns = np.nonzero(np.where(both, by_hash, by_embedding))
        pairs.append(np.stack([rows + start, columns], axis=1))
    same = [embedding.key.sha256 for embedding in embeddings]
    return _connected(np.concatenate([*pairs, _alike(same)]), count)


def folds_of(examples: Sequence[Example], labels: Labels, duplicates: Groups) -> Folds:
    """Stratified folds of the examples, [images] each, with as even a share of positives as groups
    allow. Where some are of the split ``test``, these alone are held out, as one fold.

    Raises ``ValueError`` where there are not two groups with positives and two with negatives.
    """
    test = np.array([example.split == "test" for example in examples], dtype=np.bool_)
    if test.any():
        return Folds(np.where(test, 0, -1), warning=_of_split(test, duplicates))
    sources = [example.source for example in examples]
    of_positives = {source for source, shows in zip(sources, labels, strict=True) if shows}
    own = len(of_positives) > labels.sum() / 2
    if None not in of_positives and len(of_positives) >= _FEWEST_SOURCES and not own:
        pairs = np.concatenate([_alike(duplicates.tolist()), _alike(sources)])
        fold = _stratified(labels, _connected(pairs, len(examples)))
        if fold is not None and _leaves_enough(fold, labels):
            return Folds(fold, by_source=True)
    if None in of_positives:
        warning = (
            "nobody said where all images that show it come from, so no source could be held out; "
            "expect less of sources that are not among them"
        )
    elif own:
        warning = (
            "most images that show it have a source of their own, which tells nothing of those "
            "they share; if the column names files, --source-until cuts it short"
        )
    elif len(of_positives) < _FEWEST_SOURCES:
        warning = (
            f"the images that show it come from {counted(len(of_positives), 'source')}, so these "
            f"figures are in-source; expect less of others"
        )
    else:
        warning = (
            "its sources are too uneven to be held out whole, so these figures are in-source; "
            "expect less of others"
        )
    if (fold := _stratified(labels, duplicates)) is None:
        raise ValueError("there are not two that show it and two that do not which are unlike")
    return Folds(fold, warning=warning)


def _stratified(labels: Labels, groups: Groups) -> Groups | None:
    """None where there are not two groups with positives and two with negatives."""
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = [len(set(groups[kind].tolist())) for kind in (labels, ~labels)]
    if (count := min(FOLDS, *kinds)) < 2:
        return None
    fold = np.empty(len(labels), dtype=np.intp)
    splitter = StratifiedGroupKFold(count)
    for number, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
        fold[held_out] = number
    return fold


def _leaves_enough(fold: Groups, labels: Labels) -> bool:
    """Whether without any one fold half of the images that show it, and of those that do not, are
    left to be fitted on."""
    return all(
        np.bincount(fold[kind], minlength=int(fold.max()) + 1).max() <= kind.sum() / 2
        for kind in (labels, ~labels)
    )


def _of_split(test: Labels, duplicates: Groups) -> str | None:
    shared = np.isin(duplicates, duplicates[test]) & ~test
    if not shared.any():
        return None
    return (
        f"{counted(int(shared.sum()), 'image')} to fit on are near-duplicates of some that are "
        f"held out for testing, so these figures promise too much"
    )


def _alike(values: Sequence[object]) -> NDArray[np.intp]:
    """Pairs of places with equal values, enough to connect them all; None equals nothing."""
    first: dict[object, int] = {}
    pairs = [
        (first.setdefault(value, place), place)
        for place, value in enumerate(values)
        if value is not None
    ]
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)


def _connected(pairs: NDArray[np.intp], count: int) -> Groups:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, groups = connected_components(edges, directed=False)
    found: Groups = groups.astype(np.intp)
    return found
