"""A policy's decisions on the past, from the embeddings that were kept: no image, no download.

What a worker would decide, with the tenants' thresholds, what is uncalibrated, lists of hashes and
frames as it has them. The brake (``limits.max_block_rate``) is left out: it depends on what else
was judged at the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worker.compiled import CompiledPolicy, Float64s
from worker.decide_many import ACTIONS, NOBODY, Codes, decide_by, probabilities_of
from worker.past.embedding_store import NOWHERE, EmbeddingStore, Indices
from worker.past.join import Past
from worker.types import ModelInfo

_IMAGES_A_BLOCK: Final = 2048  # at 768 dimensions 3 MB of rows
_SEVERITY: Final = {action.value: severity for severity, action in enumerate(ACTIONS)}


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """Of each image the severity (a place in ``ACTIONS``) and who asked for it: a place in
    ``names``, of categories and lists, or ``NOBODY``."""

    severity: Codes
    decided_by: Indices
    names: tuple[str, ...]

    def __getitem__(self, rows: Indices) -> Decisions:
        return Decisions(self.severity[rows], self.decided_by[rows], self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """``rows`` are the places in ``past.verdicts`` of what could be decided again, ``places``
    those of their embeddings, ``NOWHERE`` where a list decided without; ``left_out`` counts the
    others by the reason, a sentence's second half."""

    rows: Indices
    places: Indices
    decisions: Decisions
    left_out: Mapping[str, int]


def said(past: Past, rows: Indices) -> Decisions:
    """What the verdicts said; of a block that a brake made a review, the block."""
    verdicts = past.verdicts.take(rows)
    actions = verdicts["action"].cast(pa.string()).to_pylist()
    severity = np.array([_SEVERITY[action] for action in actions], dtype=np.int8)
    severity[np.asarray(verdicts["braked"], dtype=bool)] = _SEVERITY["block"]
    listed = pc.binary_join_element_wise("list", verdicts["listed"].cast(pa.string()), " ")
    by = pc.coalesce(verdicts["decided_by"].cast(pa.string()), listed)
    encoded = by.combine_chunks().dictionary_encode()
    decided_by = np.asarray(encoded.indices.fill_null(NOBODY)).astype(np.intp)
    return Decisions(severity, decided_by, tuple(encoded.dictionary.to_pylist()))


def replay(past: Past, compiled: CompiledPolicy, model: ModelInfo) -> Replay:
    """``compiled`` with the texts' embeddings by ``model``, on all verdicts in force."""
    verdicts = past.verdicts
    names = (
        *(category.id for category in compiled.categories),
        *(f"list {hash_list.id}" for hash_list in compiled.policy.lists),
    )
    places = past.embeddings.places(past.images(), compiled.policy.plan.digest)
    comparable = _by(past, model)
    places[~comparable] = NOWHERE
    severity = np.zeros(len(verdicts), dtype=np.int8)
    decided_by = np.full(len(verdicts), NOBODY, dtype=np.intp)
    listed = _settle_by_lists(past, compiled, places, severity, decided_by)
    scored = np.flatnonzero((places != NOWHERE) & ~listed)
    tenants = np.array(verdicts["tenant"].cast(pa.string()).to_pylist(), dtype=object)
    for rows, found in _blocks(past.embeddings, compiled, places, scored):
        decided = decide_by(compiled, found, tenants[rows].tolist())
        severity[rows], decided_by[rows] = decided.decisions, decided.decided_by
    rows = np.flatnonzero((places != NOWHERE) | listed)
    decisions = Decisions(severity, decided_by, names)[rows]
    left_out = _left_out(past, np.setdiff1d(np.arange(len(verdicts)), rows), comparable)
    return Replay(rows, places[rows], decisions, left_out)


def asked_probabilities(
    store: EmbeddingStore, compiled: CompiledPolicy, places: Indices, categories: Indices
) -> Float64s:
    """Of each image, the probability of one category (a place in the policy's); NaN where there is
    no embedding, or no category."""
    found = np.full(len(places), np.nan)
    asked = np.flatnonzero((places != NOWHERE) & (categories != NOBODY))
    for rows, by_category in _blocks(store, compiled, places, asked):
        found[rows] = by_category[np.arange(len(rows)), categories[rows]]
    return found


# ---------------------------------------------------------------- what can be decided


def _by(past: Past, model: ModelInfo) -> NDArray[np.bool_]:
    """Whether each verdict is by that model, in whatever precision."""
    weights, preprocess = (
        past.verdicts[name].cast(pa.string()) for name in ("weights_digest", "preprocess_digest")
    )
    same: NDArray[np.bool_] = np.asarray(
        pc.and_(
            pc.equal(weights, model.weights_digest),
            pc.equal(preprocess, model.preprocess.digest),
        )
    )
    return same


def _left_out(past: Past, rows: Indices, comparable: NDArray[np.bool_]) -> Counter[str]:
    """Why these rows cannot be decided again."""
    past = replace(past, verdicts=past.verdicts.take(rows))
    verdicts = past.verdicts
    said = {name: verdicts[name].cast(pa.string()).to_pylist() for name in ("error", "model")}
    by_another_plan = np.zeros(len(rows), dtype=np.bool_)
    for plan in past.embeddings.plans():
        by_another_plan |= past.embeddings.places(past.images(), plan) != NOWHERE
    reasons: Counter[str] = Counter()
    columns = zip(
        said["error"],
        said["model"],
        verdicts["listed"].is_valid().to_pylist(),
        comparable[rows].tolist(),
        by_another_plan.tolist(),
        strict=True,
    )
    for error, model, listed, same_model, other_plan in columns:
        if error is not None:
            reasons[f"could not be examined then ({error})"] += 1
        elif not same_model:
            reasons[f"were judged by another model ({model})"] += 1
        elif other_plan:
            reasons["were embedded by another frame plan (max_frames, views)"] += 1
        elif listed:
            reasons["were settled by a list of hashes, and never embedded"] += 1
        else:
            reasons["have no embedding any more (expired, forgotten or never kept)"] += 1
    return reasons


# ---------------------------------------------------------------- deciding


def _settle_by_lists(
    past: Past,
    compiled: CompiledPolicy,
    places: Indices,
    severity: Codes,
    decided_by: Indices,
) -> NDArray[np.bool_]:
    """Which verdicts' images are on a list of the policy's, whose decision is written down."""
    on_list = np.zeros(len(places), dtype=np.bool_)
    lists = [each.id for each in compiled.policy.lists]
    if not lists:
        return on_list
    hashes = past.verdicts["perceptual_hash"].to_pylist()
    kept = np.flatnonzero(places != NOWHERE)
    found = past.embeddings.perceptual_hashes(places[kept])
    for row, hash_ in zip(kept.tolist(), found, strict=True):
        hashes[row] = hashes[row] or hash_
    frames = np.ones(len(places), dtype=np.intp)  # what was never embedded was settled by one
    frames[kept] = past.embeddings.frames(places[kept])
    match = cache(compiled.lists.match)
    for row, (hash_, count) in enumerate(zip(hashes, frames.tolist(), strict=True)):
        if listed := match(hash_, count):
            on_list[row] = True
            severity[row] = ACTIONS.index(listed.action)
            decided_by[row] = len(compiled.categories) + lists.index(listed.id)
    return on_list


def _blocks(
    store: EmbeddingStore, compiled: CompiledPolicy, places: Indices, rows: Indices
) -> Iterator[tuple[Indices, Float64s]]:
    """The rows, some at a time, and their probabilities, [rows, categories]; each image is scored
    once, however many rows are about it."""
    in_order = rows[np.argsort(places[rows], kind="stable")]
    images, first = np.unique(places[in_order], return_index=True)
    for start in range(0, len(images), _IMAGES_A_BLOCK):
        block = images[start : start + _IMAGES_A_BLOCK]
        found = probabilities_of(compiled, *store.rows(block))
        last = start + len(block)
        end = first[last] if last < len(images) else len(in_order)
        asking = in_order[first[start] : end]
        yield asking, found[np.searchsorted(block, places[asking])]
