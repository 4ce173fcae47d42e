"""The topics of the past, made by hand: verdicts and embeddings of pictures of one colour."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np

from tests.fakes import COLOURS, FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.compiled import CompiledPolicy
from worker.embedding_format import encode_embedding
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.examined import Examined
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past, read_past
from worker.past.window import Window
from worker.schema import Request, Verdict
from worker.score import decide
from worker.types import Embedding, EmbeddingKey, FramePlan, ImageFacts, Record
from worker.verdicts import build_verdict, undetermined_verdict

ENCODER = FakeEncoder()
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW = Window(NOON - timedelta(days=7))
OTHERS = ["white", "black"]


def red(**keys: Any) -> dict[str, Any]:
    """Blocked from 0.9 on, unless ``keys`` say otherwise."""
    given = {"contrast": ["green", "blue", *OTHERS], "block": 0.9, "block_uncalibrated": True}
    return category("red", **{**given, **keys})


def green(**keys: Any) -> dict[str, Any]:
    """Reviewed from 0.5 on, unless ``keys`` say otherwise."""
    return category("green", **{"prompts": ["green"], "contrast": ["red", "blue", *OTHERS], **keys})


def compiled(*categories: dict[str, Any], **keys: Any) -> CompiledPolicy:
    return compiled_of(policy_of(*(categories or (red(), green())), **keys), ENCODER)


def embedding(
    name: str,
    *colours: str,
    plan: FramePlan | None = None,
    hash_: str | None = None,
    model: str | None = None,
) -> Embedding:
    """Of an image that is called ``name``, with a frame of each colour."""
    pixels = np.array([[[COLOURS[colour]]] for colour in colours], dtype=np.uint8)
    rows = ENCODER.encode_images(pixels).astype(np.float16)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Embedding(
        EmbeddingKey(sha256, model or ENCODER.info.digest, (plan or FramePlan()).digest),
        rows,
        ImageFacts(sha256, hash_, "image/gif", 16, 8, 99, len(rows), tuple(range(len(rows)))),
    )


def verdict(
    name: str,
    of: Embedding | ErrorCode,
    by: CompiledPolicy,
    *,
    tenant: str | None = None,
    at: datetime = NOON,
    supersedes: UUID | None = None,
    **changes: Any,
) -> Verdict:
    """What a worker says of the request ``name``."""
    request = Request(
        schema_version=1,
        request_id=name,
        item_id=f"item-{name}",
        tenant=tenant,
        url="http://127.0.0.1/x.jpg",
        metadata={"of": name},
    )
    around = (by.policy, ENCODER.info, "worker-1", 1.0, supersedes)
    if isinstance(of, ErrorCode):
        said = undetermined_verdict(request, Unexaminable(of, Stage.FETCH, "away"), *around)
    else:
        decided = decide(by, of.rows, tenant, of.facts.rows)
        said = build_verdict(request, Examined(of, "none"), decided, *around)
    return said.model_copy(update={"produced_at": at, **changes})


def records(*values: Verdict | Embedding | bytes, partition: int = 0) -> list[Record]:
    """On their topic, in this order."""
    return [
        replace(_record(value), partition=partition, offset=offset)
        for offset, value in enumerate(values)
    ]


def _record(value: Verdict | Embedding | bytes) -> Record:
    if isinstance(value, Verdict):
        return Record("verdicts", 0, 0, value.item_id.encode(), value.model_dump_json().encode())
    if isinstance(value, Embedding):
        return Record("embeddings", 0, 0, str(value.key).encode(), encode_embedding(value))
    return Record("either", 0, 0, b"?", value)


async def stream(of: Sequence[Record]) -> AsyncIterator[Record]:
    for record in of:
        yield record


async def past_of(
    verdicts: Sequence[Record],
    embeddings: Sequence[Record],
    store: EmbeddingStore,
    window: Window = WINDOW,
    **options: Any,
) -> Past:
    return await read_past(stream(verdicts), lambda: stream(embeddings), store, window, **options)
