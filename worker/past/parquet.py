"""The past as Parquet: what ``imagewarden embeddings export`` writes and ``--input`` reads.

A row is a verdict in force and an embedding of its image by one frame plan; a verdict without any
embedding has a row too, with nulls, so that it is counted. Rows are in the order of ``sha256``, so
that an image that was seen often takes little more room than once. Columns:

=====================================  ============================================================
``verdict_id`` … ``probabilities``     as in ``verdict_table.SCHEMA``; the metadata is left out
``plan_digest``                        of the frame plan that the embedding is by
``dimension``                          numbers a row of it
``embedding``                          [rows, dimension] float16, little-endian, row after row
``row_frames``                         list of int32: for each row the frame it was taken from
``media_type`` … ``frames``            facts of the image: type, width, height, bytes, frames
=====================================  ============================================================

``imagewarden.past`` in the file's metadata is JSON: the format, the window, what was passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worker.cache import are_unit
from worker.errors import Misconfigured
from worker.past import verdict_table
from worker.past.embedding_store import NOWHERE, EmbeddingStore, Indices
from worker.past.join import Past, Tally, within
from worker.past.verdict_table import in_force
from worker.past.window import Window
from worker.types import Embedding, EmbeddingKey, ImageFacts

_EMBEDDED: Final = pa.schema(
    [
        ("plan_digest", pa.dictionary(pa.int32(), pa.string())),
        ("dimension", pa.int32()),
        ("embedding", pa.binary()),
        ("row_frames", pa.list_(pa.int32())),
        ("media_type", pa.dictionary(pa.int32(), pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("frames", pa.int32()),
    ]
)
_SAID: Final = pa.schema([field for field in verdict_table.SCHEMA if field.name != "metadata"])
SCHEMA: Final = pa.schema([*_SAID, *_EMBEDDED])

_NOTE: Final = b"imagewarden.past"
_FORMAT: Final = 1
_ROWS_A_GROUP: Final = 8192
_FLOAT16: Final = np.dtype("<f2")

Progress = Callable[[int, int], None]  #: rows done, of so many


def write_past(past: Past, path: Path, *, progress: Progress = lambda done, total: None) -> int:
    """The number of rows. The file appears under its name when all of it is written; raises
    ``Misconfigured`` where it cannot be."""
    verdicts, places = _rows(past)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    note = {
        "format": _FORMAT,
        "since": past.window.since.isoformat() if past.window else None,
        "until": past.window.until.isoformat() if past.window and past.window.until else None,
        "written_at": datetime.now(UTC).isoformat(),
        "tally": asdict(past.tally),
    }
    try:
        with pq.ParquetWriter(
            temporary, SCHEMA.with_metadata({_NOTE: json.dumps(note)}), compression="zstd"
        ) as writer:
            for start in range(0, len(places), _ROWS_A_GROUP):
                group = slice(start, start + _ROWS_A_GROUP)
                said = verdicts.slice(start, _ROWS_A_GROUP).select(_SAID.names)
                embedded = _embedded(past.embeddings, places[group])
                columns = [*said.columns, *embedded.columns]
                writer.write_table(
                    pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=_ROWS_A_GROUP
                )
                progress(min(start + _ROWS_A_GROUP, len(places)), len(places))
        temporary.replace(path)
    except OSError as error:
        raise Misconfigured(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(places)


def _rows(past: Past) -> tuple[pa.Table, Indices]:
    """A verdict for each row, and the place of its embedding."""
    pairs = list(past.images())
    by_plan = [past.embeddings.places(pairs, plan) for plan in past.embeddings.plans()]
    rows = [np.flatnonzero(places != NOWHERE) for places in by_plan]
    places = [places[found] for places, found in zip(by_plan, rows, strict=True)]
    without = np.setdiff1d(np.arange(len(pairs)), np.concatenate([[], *rows]))
    of_row = np.concatenate([*rows, without]).astype(np.intp)
    place_of = np.concatenate([*places, np.full(len(without), NOWHERE)]).astype(np.intp)
    order = np.lexsort((place_of, of_row, np.array([sha256 or "" for sha256, _ in pairs])[of_row]))
    return past.verdicts.take(of_row[order]), place_of[order]


def _embedded(store: EmbeddingStore, places: Indices) -> pa.Table:
    return pa.Table.from_pylist(
        [{} if place == NOWHERE else _fields(store[place]) for place in places.tolist()], _EMBEDDED
    )


def _fields(embedding: Embedding) -> dict[str, Any]:
    facts = embedding.facts
    return {
        "plan_digest": embedding.key.plan,
        "dimension": embedding.rows.shape[1],
        "embedding": embedding.rows.astype(_FLOAT16).tobytes(),
        "row_frames": facts.rows,
        "media_type": facts.media_type,
        "width": facts.width,
        "height": facts.height,
        "bytes": facts.bytes,
        "frames": facts.frames,
    }


# ---------------------------------------------------------------- reading


def read_parquet(
    paths: Sequence[Path],
    store: EmbeddingStore,
    window: Window | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Past:
    """The past that several files hold together, or what of it lies in the window: a request that
    is in two of them has one verdict in force. Raises ``Misconfigured``."""
    said, tally, done = [], Tally(), 0
    files = [(path, *_opened(path)) for path in paths]
    total = sum(file.metadata.num_rows for _, file, _ in files)
    for path, file, told in files:
        tally += told
        try:
            for batch in file.iter_batches(_ROWS_A_GROUP):
                rows = pa.Table.from_batches([batch])
                tally += Tally(unreadable_embeddings=_keep(rows, store))
                said.append(rows.select(_SAID.names).cast(_SAID))
                progress(done := done + len(batch), total)
        except (pa.ArrowException, OSError) as error:
            raise Misconfigured(
                f"{path} is damaged ({str(error).splitlines()[0]}); export it again"
            ) from None
    verdicts = pa.concat_tables([_SAID.empty_table(), *said])
    verdicts = verdicts.append_column("metadata", pa.nulls(len(verdicts), pa.string()))
    standing = in_force(verdicts.combine_chunks()).verdicts
    return Past(within(standing, window) if window else standing, store, tally, window)


def _opened(path: Path) -> tuple[pq.ParquetFile, Tally]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise Misconfigured(f"{path} cannot be read as Parquet: {why}") from None
    try:
        note = json.loads((file.metadata.metadata or {})[_NOTE])
        tally = Tally(**note["tally"])
        known = note["format"] == _FORMAT
    except (KeyError, TypeError, ValueError):
        known = False
    if not known or not set(SCHEMA.names) <= set(file.schema_arrow.names):
        raise Misconfigured(
            f"{path} is Parquet, but nothing that this version of `imagewarden embeddings export` "
            "wrote; export it again"
        )
    return file, tally


def _keep(rows: pa.Table, store: EmbeddingStore) -> int:
    """Puts the embeddings of these rows into the store; how many are none."""
    unreadable = 0
    names = ("sha256", "perceptual_hash", "model_digest", *_EMBEDDED.names)
    for row in rows.select(names).filter(rows["embedding"].is_valid()).to_pylist():
        key = EmbeddingKey(row["sha256"], row["model_digest"], row["plan_digest"])
        try:
            if key not in store:
                store.add(_embedding(key, row))
        except (ValueError, TypeError):
            unreadable += 1
    return unreadable


def _embedding(key: EmbeddingKey, row: Mapping[str, Any]) -> Embedding:
    """Raises ``ValueError`` for numbers that are no embedding."""
    flat = np.frombuffer(row["embedding"], _FLOAT16).astype(np.float16)
    rows = flat.reshape(len(row["row_frames"]), row["dimension"])
    if not len(rows) or not are_unit(rows):
        raise ValueError("it is not rows of length one")
    facts = ImageFacts(
        sha256=key.sha256,
        perceptual_hash=row["perceptual_hash"],
        media_type=row["media_type"],
        width=row["width"],
        height=row["height"],
        bytes=row["bytes"],
        frames=row["frames"],
        rows=tuple(row["row_frames"]),
    )
    return Embedding(key, rows, facts)
