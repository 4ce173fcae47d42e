"""What is published is what is read, and what is cached decides as what is fresh."""

from __future__ import annotations

import base64
import json
from datetime import UTC
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import ErrorCode, MalformedReason, Stage
from worker.schema import (
    CategoryVerdict,
    Coordinates,
    DeadLetter,
    ErrorRef,
    ImageRef,
    ModelRef,
    PolicyRef,
    Verdict,
    parse_request,
)
from worker.score import decide
from worker.types import Embedding, EmbeddingKey, ImageFacts

DIMENSION = 32
ENCODER = FakeEncoder(DIMENSION)
POLICY = compiled_of(
    policy_of(
        category(),
        category("colour.green", prompts=["green", "a leaf"], contrast=["black"], aggregate="max"),
        category("on.trial", prompts=["white"], mode="shadow"),
        tenants={"shop": {"colour.red": {"review": 0.1}}},
    ),
    ENCODER,
)

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
DIGESTS = HEX.map(lambda digest: f"sha256:{digest}")
IDENTIFIERS = st.text(min_size=1, max_size=256)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**62)
MOMENTS = st.datetimes(timezones=st.just(UTC))
METADATA = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**62), 2**62) | FINITE | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    ),
    max_size=4,
).filter(lambda metadata: len(json.dumps(metadata).encode()) <= 4096)

REQUESTS = st.fixed_dictionaries(
    {"schema_version": st.just(1), "request_id": IDENTIFIERS, "item_id": IDENTIFIERS},
    optional={
        "tenant": st.none() | IDENTIFIERS,
        "policy": st.none() | IDENTIFIERS,
        "priority": st.sampled_from(["high", "normal", "low"]),
        "deadline": st.none() | MOMENTS.map(lambda moment: moment.isoformat()),
        "sha256": st.none() | HEX,
        "metadata": METADATA,
    },
)
IMAGES = st.one_of(
    st.fixed_dictionaries({"url": st.text(min_size=1, max_size=200)}),
    st.fixed_dictionaries(
        {"data": st.binary(max_size=200).map(lambda body: base64.b64encode(body).decode())}
    ),
)

CATEGORIES = st.builds(
    CategoryVerdict,
    id=IDENTIFIERS,
    parent=st.none() | IDENTIFIERS,
    probability=st.floats(0, 1),
    margin=FINITE,
    threshold=st.none() | st.floats(0, 1),
    action=st.sampled_from(["allow", "review", "block"]),
    loudest_for=st.text(),
    loudest_against=st.text(),
    calibrated=st.booleans(),
)
VERDICTS = st.builds(
    Verdict,
    verdict_id=st.uuids(),
    request_id=IDENTIFIERS,
    item_id=IDENTIFIERS,
    tenant=st.none() | IDENTIFIERS,
    status=st.sampled_from(["ok", "error"]),
    decision=st.sampled_from(["allow", "review", "block", "undetermined"]),
    action=st.sampled_from(["allow", "review", "block"]),
    categories=st.lists(CATEGORIES, max_size=3).map(tuple),
    shadow=st.lists(CATEGORIES, max_size=2).map(tuple),
    policy=st.builds(PolicyRef, id=IDENTIFIERS, version=COUNTS, digest=DIGESTS),
    model=st.builds(
        ModelRef,
        name=st.text(),
        weights_digest=DIGESTS,
        preprocess_digest=DIGESTS,
        precision=st.text(),
    ),
    image=st.none()
    | st.builds(
        ImageRef,
        sha256=HEX,
        perceptual_hash=st.text(),
        type=st.text(),
        width=COUNTS,
        height=COUNTS,
        bytes=COUNTS,
        frames=COUNTS,
        frames_scored=COUNTS,
        worst_frame=COUNTS,
    ),
    cache=st.sampled_from(["memory", "redis", "in_flight", "none"]),
    error=st.none()
    | st.builds(
        ErrorRef,
        code=st.sampled_from(ErrorCode),
        stage=st.sampled_from(Stage),
        detail=st.text(),
        retryable=st.booleans(),
        attempts=COUNTS,
    ),
    timings_ms=st.dictionaries(st.text(max_size=8), FINITE, max_size=3),
    metadata=METADATA,
    worker=st.text(),
    produced_at=MOMENTS,
    supersedes=st.none() | st.uuids(),
)
DEAD_LETTERS = st.builds(
    DeadLetter,
    reason=st.sampled_from(MalformedReason),
    detail=st.text(),
    stage=st.sampled_from(Stage),
    attempts=COUNTS,
    source=st.builds(Coordinates, topic=st.text(), partition=COUNTS, offset=COUNTS),
    value_sha256=HEX,
    value_bytes=COUNTS,
    value_included=st.booleans(),
    worker=st.text(),
    produced_at=MOMENTS,
)


@st.composite
def embeddings(draw: st.DrawFn) -> Embedding:
    """What is kept of unit vectors, as a model gives them."""
    count = draw(st.integers(1, 6))
    # multiples of a small number, so that no sum of squares comes to nothing
    steps = draw(npst.arrays(np.int16, (count, DIMENSION), elements=st.integers(-1000, 1000)))
    fresh = steps.astype(np.float32) + np.float32(0.5)
    fresh /= np.linalg.norm(fresh, axis=1, keepdims=True)
    sha256 = draw(HEX)
    frames = tuple(draw(st.lists(COUNTS, min_size=count, max_size=count)))
    facts = ImageFacts(sha256, draw(st.none() | HEX), draw(st.text()), 3, 4, 5, 6, frames)
    key = EmbeddingKey(sha256, draw(DIGESTS), draw(DIGESTS))
    return Embedding(key, fresh.astype(np.float16), facts)


@given(request=REQUESTS, image=IMAGES)
def test_a_request_says_the_same_after_it_was_parsed_and_written(
    request: dict[str, Any], image: dict[str, str]
) -> None:
    parsed = parse_request(json.dumps(request | image).encode(), max_bytes=10**6)
    again = parse_request(parsed.model_dump_json().encode(), max_bytes=10**6)
    assert again == parsed
    assert parsed.metadata == request.get("metadata", {})
    if "data" in image:
        assert parsed.data == base64.b64decode(image["data"])


@given(verdict=VERDICTS)
def test_a_verdict_is_read_as_it_was_written(verdict: Verdict) -> None:
    assert Verdict.model_validate_json(verdict.model_dump_json().encode()) == verdict


@given(letter=DEAD_LETTERS)
def test_a_dead_letter_is_read_as_it_was_written(letter: DeadLetter) -> None:
    assert DeadLetter.model_validate_json(letter.model_dump_json().encode()) == letter


@given(verdict=VERDICTS, field=st.text(min_size=1).map(lambda name: f"x{name}"))
def test_an_older_reader_takes_a_newer_writers_fields(verdict: Verdict, field: str) -> None:
    newer = json.loads(verdict.model_dump_json()) | {field: 1}
    assert Verdict.model_validate_json(json.dumps(newer)) == verdict


@given(embedding=embeddings())
def test_an_embedding_is_read_bit_for_bit_as_it_was_written(embedding: Embedding) -> None:
    read = parse_embedding(encode_embedding(embedding))
    assert (read.key, read.facts) == (embedding.key, embedding.facts)
    assert read.rows.dtype == np.float16
    assert read.rows.tobytes() == embedding.rows.tobytes()


@given(embedding=embeddings(), tenant=st.sampled_from([None, "shop"]))
def test_a_fresh_and_a_cached_embedding_decide_alike(
    embedding: Embedding, tenant: str | None
) -> None:
    cached = parse_embedding(encode_embedding(embedding))
    assert decide(POLICY, cached.rows, tenant) == decide(POLICY, embedding.rows, tenant)
