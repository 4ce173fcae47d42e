from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import Malformed, MalformedReason
from worker.json_schemas import MESSAGES, json_schema
from worker.schema import METADATA_MAX_BYTES, parse_request, verdict_id
from worker.types import Embedding, EmbeddingKey, ImageFacts

SCHEMAS = Path(__file__).resolve().parents[2] / "deploy" / "schemas"


def request(**changes: Any) -> bytes:
    fields = {"schema_version": 1, "request_id": "r", "item_id": "i", "url": "http://h/p"}
    merged = {**fields, **changes}
    return json.dumps({key: value for key, value in merged.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, MalformedReason.EMPTY),
        (b"", MalformedReason.EMPTY),
        (b"x" * 2000, MalformedReason.TOO_LARGE),
        (b"{", MalformedReason.NOT_JSON),
        (b"\xff\xfe", MalformedReason.NOT_JSON),
        (b"[]", MalformedReason.INVALID),
        (request(schema_version=2), MalformedReason.UNSUPPORTED_SCHEMA_VERSION),
        (request(schema_version="1"), MalformedReason.UNSUPPORTED_SCHEMA_VERSION),
        (request(schema_version=...), MalformedReason.INVALID),
        (request(request_id=...), MalformedReason.INVALID),
        (request(request_id=5), MalformedReason.INVALID),
        (request(item_id=""), MalformedReason.INVALID),
        (request(url=...), MalformedReason.INVALID),
        (request(data="aGk="), MalformedReason.INVALID),
        (request(url=..., data="not base64!"), MalformedReason.INVALID),
        (request(sha256="abc"), MalformedReason.INVALID),
        (request(deadline="yesterday"), MalformedReason.INVALID),
        (request(deadline="2026-01-01T00:00:00"), MalformedReason.INVALID),
        (request(priority="urgent"), MalformedReason.INVALID),
        (request(polcy="strict"), MalformedReason.INVALID),
        (request(metadata={"k": "v" * METADATA_MAX_BYTES}), MalformedReason.INVALID),
    ],
)
def test_what_is_not_a_request_is_refused_with_its_reason(
    value: bytes | None, reason: MalformedReason
) -> None:
    limit = 1000 if value and value.startswith(b"x") else 10_000
    with pytest.raises(Malformed) as refused:
        parse_request(value, max_bytes=limit)
    assert refused.value.reason == reason


def test_detail_of_a_refusal_names_the_field_but_quotes_no_value() -> None:
    with pytest.raises(Malformed) as refused:
        parse_request(request(url=17, sha256="hunter2"), max_bytes=10_000)
    assert "url" in refused.value.detail
    assert "hunter2" not in refused.value.detail


def test_data_is_decoded_from_base64() -> None:
    encoded = base64.b64encode(b"\x00\xffimage").decode()
    parsed = parse_request(request(url=..., data=encoded), max_bytes=10_000)
    assert parsed.data == b"\x00\xffimage"


def test_request_that_names_no_options_gets_the_defaults() -> None:
    parsed = parse_request(request(), max_bytes=10_000)
    assert (parsed.policy, parsed.tenant, parsed.deadline, parsed.metadata) == (None,) * 3 + ({},)


@pytest.mark.parametrize("name", MESSAGES)
def test_exported_schema_is_in_step(name: str) -> None:
    path = SCHEMAS / f"{name}.schema.json"
    assert path.read_text() == json_schema(name), "run `make schemas`"


def test_verdict_id_depends_on_each_of_its_parts() -> None:
    parts = {
        "request_id": "r",
        "policy_digest": "p",
        "model_digest": "m",
        "seen": "s",
        "decision": "allow",
        "action": "allow",
    }
    ids = {verdict_id(**{**parts, name: "other"}) for name in parts}
    assert len(ids | {verdict_id(**parts)}) == len(parts) + 1


def embedding() -> Embedding:
    return Embedding(
        EmbeddingKey("a" * 64, "sha256:" + "b" * 64, "sha256:" + "c" * 64),
        np.array([[0.25, -1.0], [6e-8, 0.1]], dtype=np.float16),
        ImageFacts("a" * 64, "0f" * 32, "image/gif", 3, 4, 99, 7, (0, 6)),
    )


FACTS = json.loads(encode_embedding(embedding()))["facts"]


def test_embedding_survives_the_topic_bit_for_bit() -> None:
    parsed = parse_embedding(encode_embedding(embedding()))
    assert parsed.key == embedding().key
    assert parsed.facts == embedding().facts
    assert parsed.rows.tobytes() == embedding().rows.tobytes()


def test_embedding_of_a_picture_too_plain_for_a_hash_says_so_there_and_back() -> None:
    plain = replace(
        embedding(), facts=replace(embedding().facts, perceptual_hash=None, too_plain=True)
    )
    assert parse_embedding(encode_embedding(plain)).facts == plain.facts


@pytest.mark.parametrize(
    "change",
    [
        {"values": ""},
        {"values": "AAAA"},
        {"values": "not base64"},
        {"values": base64.b64encode(np.full(4, np.nan, "<f2").tobytes()).decode()},
        {"dimension": 3},
        {"dimension": 0},
        {"sha256": "abc"},
        {"schema_version": 2},
        {"facts": {**FACTS, "perceptual_hash": "0f0f0f0f0f0f0f0f"}},
        {"facts": {**FACTS, "perceptual_hash": "0F" * 32}},
    ],
)
def test_damaged_embedding_is_not_believed(change: dict[str, Any]) -> None:
    damaged = {**json.loads(encode_embedding(embedding())), **change}
    with pytest.raises(ValueError):
        parse_embedding(json.dumps(damaged).encode())
