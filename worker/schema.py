"""The messages on the topics: versioned, parsed once at the border, strict.

Unknown fields are refused, not ignored: a misspelt ``polcy`` would otherwise mean the default one.
Within version 1 fields may be added to what we publish, so consumers ignore fields they do not
know; a field that changes its meaning makes a new version.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID, uuid5

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from worker.errors import ErrorCode, Malformed, MalformedReason, Stage
from worker.types import CacheTier

SCHEMA_VERSION: Literal[1] = 1
DEAD_LETTER_HEADER = "imagewarden-dead-letter"
METADATA_MAX_BYTES = 4096

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


def _decoded(value: object) -> object:
    """In JSON the bytes are base64; pydantic's own passes over characters that are none."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
    return value


def now() -> datetime:
    return datetime.now(UTC)


Action = Literal["allow", "review", "block"]
Base64 = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]

#: Namespace of verdict ids; changing it would make every repeat look new.
_VERDICTS = UUID("6a6c1d3e-9d0c-5b53-9f62-5f1f6f0c9a11")


class Received(BaseModel):
    """What others write; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


M = TypeVar("M", bound=Received)


class Published(BaseModel):
    """What we write; read leniently, so that an older reader takes a newer writer's fields."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


# ---------------------------------------------------------------- requests


class Request(Received):
    """One image to be moderated. Exactly one of ``url`` and ``data`` says which.

    The key of its record should be ``item_id``: verdicts carry it on.
    """

    schema_version: Literal[1]
    request_id: Identifier = Field(description="Unique; repeats of it get equal verdict ids.")
    item_id: Identifier = Field(description="What the image belongs to; key of the verdict.")
    tenant: Identifier | None = Field(default=None, description="Whose thresholds apply.")
    url: Annotated[str, StringConstraints(min_length=1, max_length=8192)] | None = Field(
        default=None, description="http or https. Its query string is treated as a credential."
    )
    data: Base64 | None = Field(default=None, description="The image itself in base64, not a URL.")
    policy: Identifier | None = Field(
        default=None, description="Id of a loaded policy; else the first."
    )
    priority: Literal["high", "normal", "low"] = Field(
        default="normal",
        description="For whoever routes requests to topics; a worker takes them as they come.",
    )
    deadline: AwareDatetime | None = Field(
        default=None, description="After this the request is not worked on: it gets `undetermined`."
    )
    sha256: Sha256 | None = Field(default=None, description="What the image must hash to.")
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict,
        description=f"Opaque, at most {METADATA_MAX_BYTES} bytes of JSON; the verdict repeats it, "
        "with null for numbers that JSON lacks.",
    )

    @field_validator("metadata")
    @classmethod
    def _capped(cls, metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if metadata and len(json.dumps(metadata).encode()) > METADATA_MAX_BYTES:
            raise ValueError(f"metadata is over {METADATA_MAX_BYTES} bytes of JSON")
        return metadata

    @model_validator(mode="after")
    def _one_image(self) -> Request:
        if (self.url is None) == (self.data is None):
            raise ValueError("give exactly one of url and data")
        return self


def parse_request(value: bytes | None, *, max_bytes: int) -> Request:
    """Raises ``Malformed``, whose detail names fields but quotes no values."""
    return parse_strictly(Request, value, max_bytes=max_bytes)


def parse_strictly(kind: type[M], value: bytes | None, *, max_bytes: int) -> M:
    """What others write. Raises ``Malformed``, whose detail names fields but quotes no values."""
    if not value:
        raise Malformed(MalformedReason.EMPTY, "the record has no value")
    if len(value) > max_bytes:
        raise Malformed(
            MalformedReason.TOO_LARGE, f"{len(value)} bytes; at most {max_bytes} are taken"
        )
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        raise _malformed(error, kind.__name__.lower()) from None


def _malformed(error: ValidationError, whole: str) -> Malformed:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return Malformed(MalformedReason.NOT_JSON, "the value is not JSON")
    for problem in problems:
        if problem["loc"] == ("schema_version",) and problem["type"] != "missing":
            return Malformed(
                MalformedReason.UNSUPPORTED_SCHEMA_VERSION,
                f"schema_version must be {SCHEMA_VERSION}",
            )
    # An unknown field's name is the producer's text: cap it, and never quote a value
    told = "; ".join(
        f"{'.'.join(str(part)[:64] for part in problem['loc']) or whole}: {problem['msg']}"
        for problem in problems[:5]
    )
    return Malformed(MalformedReason.INVALID, told)


# ---------------------------------------------------------------- verdicts


class CategoryVerdict(Published):
    id: str
    parent: str | None
    probability: float
    margin: float
    threshold: float | None = Field(
        description="What the probability was held against: that of the action taken, or, "
        "where the action is allow, the lowest one it stayed under."
    )
    action: Action
    severity: str | None = Field(
        default=None, description="The name that the policy gives to such a probability."
    )
    loudest_for: str | None = Field(
        description="The prompt that spoke loudest for the category; null: it has only a head."
    )
    loudest_against: str | None = Field(
        description="The contrast that spoke loudest against it; null: it has only a head."
    )
    dampened_by: str | None = Field(
        default=None, description="The prompt of the exception that lowered the margin most."
    )
    calibrated: bool


class PolicyRef(Published):
    id: str
    version: int
    digest: Digest


class ModelRef(Published):
    name: str
    weights_digest: Digest
    preprocess_digest: Digest
    precision: str


class ImageRef(Published):
    sha256: Sha256
    perceptual_hash: str | None = Field(description="PDQ, 256 bits in hex, of the first frame.")
    type: str
    width: int
    height: int
    bytes: int
    frames: int = Field(description="Frames in the file.")
    frames_scored: int
    worst_frame: int = Field(description="Index of the frame that decided.")


class ListRef(Published):
    id: str
    action: Action
    distance: int = Field(description="Bits of the PDQ hash that differ from the one listed.")


class BrakeRef(Published):
    """Too many were blocked: what this verdict would have been without the policy's brake."""

    would_have_been: Literal["block"] = "block"
    share: float = Field(description="Of the tenant's recent requests that would be blocked.")
    requests: int = Field(description="How many were recent.")
    scope: Literal["fleet", "worker"] = Field(
        description="Whose requests were counted; worker: Redis was away, or there is none."
    )


class ErrorRef(Published):
    code: ErrorCode
    stage: Stage
    detail: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    attempts: int = Field(description="Tries by now, those of earlier verdicts included.")
    retry_at: datetime | None = Field(
        default=None,
        description="When it will be tried again, for a verdict that supersedes this one; "
        "null: this is the last word.",
    )


class Verdict(Published):
    """What was decided on one request.

    ``decision`` is ``undetermined`` where the image could not be examined; ``action`` is then
    what the policy's ``on_error`` says, else the decision. Of several verdicts on one request,
    those with equal ``verdict_id`` are repeats; among others ok beats error, then the one that
    supersedes, then the highest offset.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    verdict_id: UUID
    request_id: str
    item_id: str
    tenant: str | None
    status: Literal["ok", "error"]
    decision: Literal["allow", "review", "block", "undetermined"]
    action: Action
    categories: tuple[CategoryVerdict, ...] = ()
    shadow: tuple[CategoryVerdict, ...] = Field(
        default=(), description="What categories on trial would have said; no part of the decision."
    )
    listed: ListRef | None = Field(
        default=None, description="The policy's list of hashes that decided, with no model asked."
    )
    brake: BrakeRef | None = None
    policy: PolicyRef
    model: ModelRef
    image: ImageRef | None = None
    cache: CacheTier = Field(
        default="none", description="Where the embedding came from; none: it was computed."
    )
    error: ErrorRef | None = None
    timings_ms: dict[str, float]
    metadata: dict[str, Any]
    worker: str
    produced_at: datetime
    supersedes: UUID | None = None


def verdict_id(
    *,
    request_id: str,
    policy_digest: str,
    model_digest: str,
    seen: str,
    decision: str,
    action: str,
) -> UUID:
    """A UUIDv5 (RFC 9562) of the request, what judged it, what was seen and what was said.

    ``seen`` is the content digest or the error code. What was said is part of it because an
    embedding computed twice in batches of different sizes may differ in its last bit: equal ids
    then still mean equal decisions.
    """
    parts = (request_id, policy_digest, model_digest, seen, decision, action)
    return uuid5(_VERDICTS, json.dumps(parts))


# ---------------------------------------------------------------- dead letters


class Coordinates(Published):
    topic: str
    partition: int
    offset: int


class DeadLetter(Published):
    """Why a record was not taken, as JSON in the header ``imagewarden-dead-letter``.

    The dead letter's key, value and other headers are the record's own, byte for byte, so that
    replaying it is publishing it again. Where that is larger than the broker takes,
    ``value_included`` is false, the value is empty, its digest stands in for it, and the other
    headers, and a key longer than any item's, are left out.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    reason: MalformedReason
    detail: str
    stage: Stage
    attempts: int
    source: Coordinates
    value_sha256: Sha256
    value_bytes: int
    value_included: bool
    worker: str
    produced_at: datetime
