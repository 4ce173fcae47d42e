"""The images of the past that are nearest to an image or a text: look-alikes of an incident.

Embeddings are looked at in blocks, so memory does not grow with the past. What may be among the
nearest is picked in single precision, by faiss where it is installed and by numpy where it is not;
the cosines themselves are then computed in double precision, row by row, so both give the same
answer to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worker.past.embedding_store import NOWHERE, EmbeddingStore, Indices
from worker.past.join import Past
from worker.types import Float32Rows

BLOCK: Final = 4096  # images; some 25 MB of float64 at 768 dimensions
_SLACK: Final = 1e-4  # more than single precision can be off by, in a cosine of unit vectors

Float64s = NDArray[np.float64]
#: From unit queries, unit rows and a cosine: the places of the rows nearer than that to a query.
Candidates = Callable[[Float32Rows, Float32Rows, float], Indices]


@dataclass(frozen=True, slots=True)
class Match:
    """An image, and the cosine of that of its rows which is nearest to the query."""

    sha256: str
    cosine: float


def nearest(
    queries: NDArray[np.floating],
    store: EmbeddingStore,
    places: Indices,
    *,
    top: int,
    candidates: Candidates | None = None,
    block: int = BLOCK,
) -> list[Match]:
    """Of the images at ``places`` in the store, the ``top`` nearest to any of ``queries``
    [queries, dimension]: the nearest first, each once, of equally near ones those with the smaller
    SHA-256. All must be of the queries' ``ModelInfo.space``."""
    near = candidates or installed()
    directions = _unit(queries)
    found: dict[str, float] = {}
    floor = -np.inf
    for start in range(0, len(places), block):
        some = places[start : start + block]
        rows = store.rows(some)
        unit = _unit(rows.values)
        close = near(directions.astype(np.float32), unit.astype(np.float32), floor - _SLACK)
        images = some[np.searchsorted(rows.starts, close, side="right") - 1]
        for image, cosine in zip(images, _cosines(directions, unit[close]).tolist(), strict=True):
            sha256 = store[int(image)].key.sha256
            found[sha256] = max(cosine, found.get(sha256, cosine))
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:top]
        found = dict(ranked)
        if len(found) == top:
            floor = ranked[-1][1]
    return [Match(sha256, cosine) for sha256, cosine in found.items()]


def images_of(past: Past, weights_digest: str, preprocess_digest: str) -> Indices:
    """The places of what was kept of the images that verdicts are on, by one model in whatever
    precision: embeddings of others say nothing to it."""
    verdicts = past.verdicts
    by_model = pc.and_(
        pc.equal(verdicts["weights_digest"].cast(pa.string()), weights_digest),
        pc.equal(verdicts["preprocess_digest"].cast(pa.string()), preprocess_digest),
    )
    images = verdicts.filter(by_model).select(["sha256", "model_digest"])
    pairs = images.group_by(["sha256", "model_digest"]).aggregate([]).to_pydict()
    keys = list(zip(pairs["sha256"], pairs["model_digest"], strict=True))
    store = past.embeddings
    each = [store.places(keys, plan) for plan in store.plans()]
    places = np.concatenate([np.empty(0, dtype=np.intp), *each])
    kept: Indices = places[places != NOWHERE]
    return kept


def installed() -> Candidates:
    """faiss where it is installed, else numpy."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return by_numpy
    return by_faiss


def by_numpy(queries: Float32Rows, rows: Float32Rows, floor: float) -> Indices:
    return np.flatnonzero((rows @ queries.T).max(axis=1) >= floor)


def by_faiss(queries: Float32Rows, rows: Float32Rows, floor: float) -> Indices:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    _, _, places = index.range_search(queries, max(floor, -2.0))  # no cosine is below -1
    return np.unique(places).astype(np.intp)


def _cosines(directions: Float64s, rows: Float64s) -> Float64s:
    """[rows], each to the nearest of the directions. A sum and no matrix product, whose last bits
    would depend on how many rows there are."""
    each = [(rows * direction).sum(axis=1) for direction in directions]
    highest: Float64s = np.max(each, axis=0)
    return highest


def _unit(rows: NDArray[np.floating]) -> Float64s:
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: Float64s = exact / np.maximum(lengths, np.finfo(np.float64).tiny)
    return unit
