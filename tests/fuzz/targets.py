"""What is fuzzed: each target takes any bytes, and raises where a promise does not hold.

A refusal is an answer; any other exception is a finding. A target returns whether it was taken.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple, NoReturn

import httpx
from pydantic import ValidationError

from tests.policy_factory import policy_bytes
from tests.unit.url_corpus import CONFUSING_URLS, HOSTILE_URLS, LEGAL_URLS
from worker.egress import MAX_URL_CHARACTERS, EgressPolicy, judge_url, public_url
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import Malformed, Misconfigured, Unexaminable
from worker.policy_yaml import InvalidPolicy, parse_policy
from worker.schema import DeadLetter, Verdict, parse_request
from worker.settings_load import load_settings

_EGRESS = EgressPolicy()
_REQUEST_BYTES = 1_000_000


class Target(NamedTuple):
    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]


def request(data: bytes) -> bool:
    """A request, or malformed; what is said of either is JSON for any reader of it."""
    try:
        parsed = parse_request(data, max_bytes=_REQUEST_BYTES)
    except Malformed as malformed:
        malformed.detail.encode()
        return False
    again = strict_json(parsed.model_dump_json())
    assert again["request_id"] == parsed.request_id
    assert again["metadata"] == _without_nan(parsed.metadata)
    return True


def url(data: bytes) -> bool:
    """Refused, or requested as it was judged: from a global address, at a port of the list."""
    text = data.decode("utf-8", "replace")
    shown = public_url(text)
    assert "?" not in shown
    assert "@" not in shown.partition("://")[2].partition("/")[0]
    try:
        target = judge_url(text, _EGRESS)
    except Unexaminable:
        return False
    assert target.url.scheme in ("http", "https")
    assert target.port in (80, 443)
    assert not target.url.userinfo
    again = httpx.URL(str(target.url))  # what is sent is read as what was judged
    assert (again.raw_host.decode(), again.raw_path) == (target.host, target.url.raw_path)
    _is_no_special_address(target.host)
    if len(str(target.url)) <= MAX_URL_CHARACTERS:  # escaping makes it longer
        judge_url(str(target.url), _EGRESS)
    return True


def location(data: bytes) -> bool:
    """The same of a redirect."""
    base = judge_url("http://example.com/a/b?c", _EGRESS)
    try:
        target = judge_url(data.decode("utf-8", "replace"), _EGRESS, base=base)
    except Unexaminable:
        return False
    _is_no_special_address(target.host)
    return url(str(target.url).encode())


def policy(data: bytes) -> bool:
    """A policy, or refused with the line and column of each problem."""
    try:
        parse_policy(data, "policy.yaml")
        return True
    except InvalidPolicy as invalid:
        for problem in str(invalid).splitlines():
            path, line, column, told = problem.split(":", 3)
            assert path == "policy.yaml"
            assert (int(line), int(column)) >= (1, 1)
            assert told.strip()
        return False


def embedding(data: bytes) -> bool:
    """Whole and finite, and the same when it is written and read again; or refused."""
    try:
        parsed = parse_embedding(data)
    except ValueError:
        return False
    assert len(parsed.rows) == len(parsed.facts.rows)
    again = parse_embedding(encode_embedding(parsed))
    assert again.key == parsed.key
    assert again.rows.tobytes() == parsed.rows.tobytes()
    return True


def published(data: bytes) -> bool:
    """What commands read of our own topics, where anybody may have written."""
    taken = False
    for kind in (DeadLetter, Verdict):
        try:
            read = kind.model_validate_json(data)
        except ValidationError:
            continue
        strict_json(read.model_dump_json())
        taken = True
    return taken


def settings(data: bytes) -> bool:
    """Settings, or refused with a sentence."""
    try:
        given = tomllib.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # the loader's own, which names the file
        return False
    try:
        load_settings({name: value for name, value in given.items() if name.isidentifier()})
        return True
    except Misconfigured as wrong:
        assert str(wrong)
        return False


def strict_json(text: str) -> dict[str, object]:
    """As RFC 8259 has it: no NaN, no Infinity, and text that is UTF-8."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    text.encode()
    read: dict[str, object] = json.loads(text, parse_constant=refuse)
    return read


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value


_SPECIAL = [
    ip_network(network)
    for network in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16")
]


def _is_no_special_address(host: str) -> None:
    """By another reckoning than the wall's own."""
    try:
        address = ip_address(host)
    except ValueError:
        assert not host.replace(".", "").isdigit(), f"{host} reads as an address somewhere"
        return
    assert address.is_global, host
    assert not any(address in network for network in _SPECIAL if network.version == address.version)


_REQUEST = b'{"schema_version":1,"request_id":"r","item_id":"i",'
_POLICIES = Path(__file__).resolve().parents[2] / "policies"

TARGETS = {
    "request": Target(
        request,
        (
            _REQUEST + b'"url":"http://example.com/"}',
            _REQUEST + b'"data":"","tenant":"t","priority":"low","policy":"p"}',
            _REQUEST + b'"url":"u","deadline":"2026-01-01T00:00:00Z"}',
            _REQUEST + b'"url":"u","metadata":{"a":[1,NaN,-Infinity,1e999,{"b":null}]}}',
            _REQUEST + b'"url":"u","metadata":{"\\ud800":"\\u0000"}}',
            _REQUEST + b'"url":"u","metadata":{"a":' + b"[" * 300 + b"]" * 300 + b"}}",
            _REQUEST + b'"url":"u","metadata":{"a":' + b"9" * 4000 + b"}}",
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"\xef\xbb\xbf{}",
        ),
    ),
    "url": Target(
        url,
        tuple(
            each.replace("{port}", "80").encode("utf-8", "surrogatepass")
            for each in (*HOSTILE_URLS, *CONFUSING_URLS, *LEGAL_URLS)
        ),
    ),
    "location": Target(
        location,
        (b"/a", b"//example.com/a", b"?b", b"#c", b"http://example.com/", b"//10.0.0.1", b"../.."),
    ),
    "policy": Target(
        policy,
        (
            policy_bytes(),
            *(path.read_bytes() for path in sorted(_POLICIES.glob("*.yaml"))),
            b"version: 0o" + b"7" * 9000,
            b"0o" + b"7" * 9000 + b": 1",
            b"? [0o" + b"7" * 9000 + b"]\n: 1",
            b"version: 0x_",
            b"version: !!bool foo",
            b"version: " + b"9" * 9000,
            b"- " * 20_000,
            b"{a: " * 20_000,
            b"a: &a [*a]",
            b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
            b"<<: [{a: 1}, {a: 2}]",
            b"version: !!python/object/apply:os.system [x]",
            b"%YAML 9.9\n---\na: 1",
        ),
    ),
    "embedding": Target(
        embedding,
        (
            b'{"sha256":"' + b"a" * 64 + b'","model_digest":"sha256:' + b"b" * 64 + b'",'
            b'"plan_digest":"sha256:' + b"c" * 64 + b'","dimension":2,"values":"ADwAPA==",'
            b'"facts":{"perceptual_hash":null,"media_type":"image/png","width":1,"height":1,'
            b'"bytes":1,"frames":1,"rows":[0]}}',
        ),
    ),
    "published": Target(
        published,
        (
            b'{"reason":"invalid","detail":"","stage":"parse","attempts":1,"source":{"topic":"t",'
            b'"partition":0,"offset":0},"value_sha256":"' + b"a" * 64 + b'","value_bytes":0,'
            b'"value_included":true,"worker":"w","produced_at":"2026-01-01T00:00:00Z"}',
        ),
    ),
    "settings": Target(
        settings,
        (
            b'[fetch]\nports = "80,443"\nallow = ["127.0.0.1:80"]\n',
            b"[fetch]\nports = [9007199254740993, -1, 1e999, nan]\n",
            b'[kafka]\nbootstrap = "a,b"\nsession_timeout_seconds = inf\n',
            b'[kafka_security]\nprotocol = "SASL_SSL"\nsasl_password = "x"\n',
            b'[redis]\nurl = "redis://:p@[::1"\n',
            b'[cache]\nurl_key = "\\u0000"\n',
        ),
    ),
}
