"""An embedding as bytes: one format for its topic and for the cache."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from pydantic import Field

from worker.schema import SCHEMA_VERSION, Digest, Published, Sha256
from worker.types import Embedding, EmbeddingKey, ImageFacts


class EmbeddingFacts(Published):
    perceptual_hash: str | None = Field(
        pattern=r"^[0-9a-f]{64}$", description="PDQ, 256 bits in hex, of the first frame."
    )
    media_type: str
    width: int
    height: int
    bytes: int
    frames: int
    rows: tuple[int, ...] = Field(description="For each row the frame it was taken from.")
    too_plain: bool = Field(
        default=False, description="Whether there is no hash as the first frame is too plain."
    )


class EmbeddingMessage(Published):
    """An image's embedding as it is published and cached: little-endian float16 in base64."""

    schema_version: Literal[1] = SCHEMA_VERSION
    sha256: Sha256
    model_digest: Digest
    plan_digest: Digest
    dimension: int = Field(gt=0)
    values: str = Field(description="[rows, dimension] float16, little-endian, base64.")
    facts: EmbeddingFacts


_FLOAT16 = np.dtype("<f2")


def encode_embedding(embedding: Embedding) -> bytes:
    facts = embedding.facts
    return (
        EmbeddingMessage(
            sha256=embedding.key.sha256,
            model_digest=embedding.key.model,
            plan_digest=embedding.key.plan,
            dimension=embedding.rows.shape[1],
            values=base64.b64encode(embedding.rows.astype(_FLOAT16).tobytes()).decode(),
            facts=EmbeddingFacts(
                perceptual_hash=facts.perceptual_hash,
                media_type=facts.media_type,
                width=facts.width,
                height=facts.height,
                bytes=facts.bytes,
                frames=facts.frames,
                rows=facts.rows,
                too_plain=facts.too_plain,
            ),
        )
        .model_dump_json()
        .encode()
    )


def parse_embedding(value: bytes) -> Embedding:
    """Raises ``ValueError`` for bytes that are not a whole, finite embedding."""
    message = EmbeddingMessage.model_validate_json(value)
    flat = np.frombuffer(base64.b64decode(message.values, validate=True), dtype=_FLOAT16)
    rows = flat.reshape(len(message.facts.rows), message.dimension).astype(np.float16)
    if not np.isfinite(rows).all():
        raise ValueError("the embedding is not finite")
    return Embedding(
        key=EmbeddingKey(message.sha256, message.model_digest, message.plan_digest),
        rows=rows,
        facts=ImageFacts(sha256=message.sha256, **message.facts.model_dump()),
    )
