"""Verdicts as columns, and which of several on one request is in force. Pure.

A few hundred bytes a verdict, in columns, take the place of an object of many thousands. What
occurs again and again (tenants, policies, categories) is kept once, in Arrow's dictionaries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from worker.schema import Action, ListRef, ModelRef, PolicyRef, Published, Sha256
from worker.types import Record, digest_of_model

Indices = NDArray[np.intp]

_NAME: Final = pa.dictionary(pa.int32(), pa.string())

#: One verdict a row.
SCHEMA: Final = pa.schema(
    [
        ("verdict_id", pa.string()),
        ("request_id", pa.string()),
        ("item_id", pa.string()),
        ("tenant", _NAME),
        ("produced_at", pa.timestamp("us", "UTC")),
        ("first_at", pa.timestamp("us", "UTC")),  # of the first verdict on the request
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("supersedes", pa.string()),
        ("decision", _NAME),
        ("action", _NAME),
        ("braked", pa.bool_()),  # the policy's brake made a review of a block
        ("listed", _NAME),  # the list of hashes that decided
        ("error", _NAME),  # its code; null: the image was examined
        ("policy", _NAME),
        ("policy_version", pa.int32()),
        ("policy_digest", _NAME),
        ("model", _NAME),
        ("weights_digest", _NAME),
        ("preprocess_digest", _NAME),
        ("precision", _NAME),
        ("model_digest", _NAME),  # of the three before
        ("sha256", pa.string()),
        ("perceptual_hash", pa.string()),
        ("decided_by", _NAME),  # the category that asked for the decision; null: none did
        ("categories", pa.list_(_NAME)),  # those that were enforced
        ("probabilities", pa.list_(pa.float32())),  # of the categories, in their order
        ("metadata", pa.string()),  # JSON; null unless it was asked for
    ]
)
_ROWS_A_CHUNK: Final = 8192
_SEVERITY: Final[dict[Action, int]] = {"allow": 0, "review": 1, "block": 2}


class _Category(Published):
    id: str
    probability: float
    action: Action


class _Image(Published):
    sha256: Sha256
    perceptual_hash: str | None = None


class _Error(Published):
    code: str


class Said(Published):
    """What a verdict says, as far as the past needs it: the rest is not worth parsing."""

    schema_version: Literal[1]
    verdict_id: UUID
    request_id: str
    item_id: str
    tenant: str | None
    decision: Literal["allow", "review", "block", "undetermined"]
    action: Action
    categories: tuple[_Category, ...] = ()
    listed: ListRef | None = None
    brake: dict[str, Any] | None = None
    policy: PolicyRef
    model: ModelRef
    image: _Image | None = None
    error: _Error | None = None
    produced_at: datetime
    supersedes: UUID | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class VerdictTable:
    """Grows by one record at a time. ``metadata``: what requests repeat is kept as well."""

    def __init__(self, *, metadata: bool = False) -> None:
        self._metadata = metadata
        self._rows: list[tuple[Any, ...]] = []
        self._chunks: list[pa.RecordBatch] = []

    def add(self, record: Record) -> bool:
        """False for what is no verdict."""
        try:
            said = Said.model_validate_json(record.value or b"")
        except ValidationError:
            return False
        self._rows.append(_row(said, record, self._metadata))
        if len(self._rows) == _ROWS_A_CHUNK:
            self._flush()
        return True

    def table(self) -> pa.Table:
        """All that was added, which is then no longer here: there should be one copy of it."""
        self._flush()
        chunks, self._chunks = self._chunks, []
        return pa.Table.from_batches(chunks, SCHEMA).combine_chunks()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(SCHEMA, zip(*self._rows, strict=True), strict=True)
            arrays = [pa.array(values, field.type) for field, values in columns]
            self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
            self._rows.clear()


def _row(said: Said, record: Record, metadata: bool) -> tuple[Any, ...]:
    model = said.model
    severest = max(
        said.categories, key=lambda each: (_SEVERITY[each.action], each.probability), default=None
    )
    decided = severest is not None and severest.action != "allow"
    return (
        str(said.verdict_id),
        said.request_id,
        said.item_id,
        said.tenant,
        said.produced_at,
        said.produced_at,
        record.partition,
        record.offset,
        None if said.supersedes is None else str(said.supersedes),
        said.decision,
        said.action,
        said.brake is not None,
        said.listed and said.listed.id,
        said.error and said.error.code,
        said.policy.id,
        said.policy.version,
        said.policy.digest,
        model.name,
        model.weights_digest,
        model.preprocess_digest,
        model.precision,
        digest_of_model(model.weights_digest, model.preprocess_digest, model.precision),
        said.image and said.image.sha256,
        said.image and said.image.perceptual_hash,
        severest.id if severest and decided else None,
        [each.id for each in said.categories],
        [each.probability for each in said.categories],
        json.dumps(said.metadata) if metadata else None,
    )


# ---------------------------------------------------------------- which one is in force


class InForce(NamedTuple):
    """The verdicts in force, and how many were repeats of others or gave way to others."""

    verdicts: pa.Table
    repeats: int
    overruled: int


class _Claim(NamedTuple):
    row: int
    verdict_id: str
    error: str | None
    supersedes: str | None
    partition: int
    offset: int
    produced_at: int
    first_at: int


_CLAIMED: Final = ("verdict_id", "error", "supersedes", "partition", "offset")


def in_force(verdicts: pa.Table) -> InForce:
    """Of each request the one verdict that counts, in the order in which they lie there.

    Repeats, of equal ``verdict_id``, count once; among others ok beats error, then the one that
    supersedes, then the highest offset (across partitions, between which offsets say nothing, the
    latest). Its ``first_at`` is the earliest of all verdicts on the request.
    """
    requests = codes(verdicts, "request_id")
    order = np.argsort(requests, kind="stable")
    starts = np.flatnonzero(np.diff(requests[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    contested = np.repeat(lengths > 1, lengths)
    if not contested.any():
        return InForce(verdicts, 0, 0)
    claims = _claims(verdicts, order[contested])
    rows, firsts, repeats, start = [], [], 0, 0
    for length in lengths[lengths > 1].tolist():
        of_request = claims[start : (start := start + length)]
        of_request.sort(key=lambda claim: (claim.produced_at, claim.offset))
        distinct = list({claim.verdict_id: claim for claim in reversed(of_request)}.values())
        rows.append(_strongest(distinct).row)
        firsts.append(min(claim.first_at for claim in of_request))
        repeats += length - len(distinct)
    first_at = np.asarray(verdicts["first_at"].cast(pa.int64())).copy()
    first_at[rows] = firsts
    place = verdicts.schema.get_field_index("first_at")
    column = pa.array(first_at).cast(SCHEMA.field("first_at").type)
    counting = np.sort(np.concatenate([order[~contested], np.array(rows, dtype=np.intp)]))
    standing = verdicts.set_column(place, SCHEMA.field("first_at"), column).take(counting)
    return InForce(standing, repeats, len(verdicts) - len(counting) - repeats)


def _claims(verdicts: pa.Table, rows: Indices) -> list[_Claim]:
    said = verdicts.select([*_CLAIMED, "produced_at", "first_at"]).take(rows)
    columns = [said[name].to_pylist() for name in _CLAIMED]
    times = [said[name].cast(pa.int64()).to_pylist() for name in ("produced_at", "first_at")]
    return [_Claim(*claim) for claim in zip(rows.tolist(), *columns, *times, strict=True)]


def _strongest(claims: Sequence[_Claim]) -> _Claim:
    examined = [claim for claim in claims if claim.error is None]
    candidates = examined or claims
    superseded = {claim.supersedes for claim in candidates}
    standing = [claim for claim in candidates if claim.verdict_id not in superseded]
    latest, *others = standing or candidates
    for claim in others:
        if claim.partition == latest.partition:
            latest = max(latest, claim, key=lambda one: one.offset)
        else:
            latest = max(latest, claim, key=lambda one: one.produced_at)
    return latest


def codes(verdicts: pa.Table, column: str) -> Indices:
    """Equal values of a column without nulls have equal numbers."""
    encoded = verdicts[column].combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return np.asarray(encoded.indices).astype(np.intp)
