"""Metadata as strange as JSON parsers let through: the verdict that repeats it stays JSON."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest

from worker.errors import Malformed, MalformedReason
from worker.schema import METADATA_MAX_BYTES, Verdict, parse_request

REQUEST = b'{"schema_version":1,"request_id":"r","item_id":"i","url":"u","metadata":%s}'


def repeated(metadata: bytes) -> Any:
    """What a reader of RFC 8259's JSON reads in the verdict."""
    request = parse_request(REQUEST % metadata, max_bytes=1_000_000)
    verdict = Verdict.model_construct(metadata=request.metadata)
    return json.loads(
        verdict.model_dump_json(include={"metadata"}).encode(), parse_constant=no_constant
    )["metadata"]


def no_constant(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_a_number_that_json_has_no_word_for_is_repeated_as_null(number: bytes) -> None:
    assert repeated(b'{"a":%s,"b":[{"c":%s}]}' % (number, number)) == {
        "a": None,
        "b": [{"c": None}],
    }


@pytest.mark.parametrize(
    "value",
    [
        b"123456789012345678901234567890",
        b"9" * 4000,
        b"-0.0",
        b"5e-324",
        b"1.7976931348623157e308",
        b'"\\u0000"',
        '"\u2028😀"'.encode(),
        b"[" * 150 + b"]" * 150,
        b"null",
    ],
)
def test_what_json_can_say_is_repeated_as_it_was(value: bytes) -> None:
    assert repeated(b'{"a":%s}' % value) == {"a": json.loads(value)}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (b'{"a":"\\ud800"}', MalformedReason.NOT_JSON),  # half a surrogate pair is no text
        (b'{"\\udc00":1}', MalformedReason.NOT_JSON),
        (b'{"a":"\xff"}', MalformedReason.NOT_JSON),
        (b'{"a":%s}' % (b"[" * 1000 + b"]" * 1000), MalformedReason.NOT_JSON),
        (b'{"a":%s}' % (b"[" * 100_000), MalformedReason.NOT_JSON),
        (b'{"a":%s}' % (b"9" * 5000), MalformedReason.NOT_JSON),
        (b'{"a":"%s"}' % (b"x" * METADATA_MAX_BYTES), MalformedReason.INVALID),
        (b"[]", MalformedReason.INVALID),
    ],
)
def test_what_could_not_be_repeated_is_no_request(metadata: bytes, reason: MalformedReason) -> None:
    with pytest.raises(Malformed) as refused:
        parse_request(REQUEST % metadata, max_bytes=1_000_000)
    assert refused.value.reason is reason
