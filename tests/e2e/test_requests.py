"""Whatever is put on the topic gets an answer, and the answer says what was wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.scene import KAFKA, answers_to, fake_worker, metric, picture, request, write_policy
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, Worker, stage
from worker.errors import ErrorCode, MalformedReason
from worker.errors import Stage as At
from worker.schema import DeadLetter, Verdict

_REQUEST_MAX_BYTES = 20_000
_MESSAGE_MAX_BYTES = 40_000
_FETCH_MAX_BYTES = 50_000
_FETCH_SECONDS = 3.0
_ATTEMPTS = 3


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


_PHOTO = picture("red")

REPLIES = {
    "/red.jpg": Reply(_PHOTO),
    "/green.jpg": Reply(picture("green")),
    "/moved.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": "/green.jpg"}),
    "/inward.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": "http://169.254.169.254/latest/meta-data/"}
    ),
    "/loop.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": "/loop.jpg"}),
    "/broken.jpg": Reply(status=HTTPStatus.INTERNAL_SERVER_ERROR),
    "/busy.jpg": Reply(status=HTTPStatus.TOO_MANY_REQUESTS),
    "/slow.jpg": Reply(_PHOTO, delay_seconds=2 * _FETCH_SECONDS),
    "/long.jpg": Reply(_PHOTO + bytes(_FETCH_MAX_BYTES)),
    "/empty.jpg": Reply(b""),
    "/page.jpg": Reply(b"<!doctype html><title>Sign in</title>"),
    "/half.jpg": Reply(_PHOTO[: len(_PHOTO) // 2]),
    "/garbage.png": Reply(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "/huge.png": Reply(_png(2000, 2000)),
}


@dataclass(frozen=True)
class Unexamined:
    """A request, and what its verdict says. Its URL, where it is a path, is on the image server."""

    url: str
    code: ErrorCode
    stage: At
    retryable: bool = False
    attempts: int = 1
    fields: tuple[tuple[str, Any], ...] = ()


UNEXAMINED = {
    "unknown-policy": Unexamined(
        "/red.jpg", ErrorCode.UNKNOWN_POLICY, At.POLICY, fields=(("policy", "no-such"),)
    ),
    "deadline-passed": Unexamined(
        "/red.jpg",
        ErrorCode.DEADLINE_EXCEEDED,
        At.POLICY,
        fields=(("deadline", "2020-02-02T02:02:02Z"),),
    ),
    "other-content": Unexamined(
        "/red.jpg", ErrorCode.DIGEST_MISMATCH, At.FETCH, fields=(("sha256", "0" * 64),)
    ),
    "other-scheme": Unexamined("ftp://127.0.0.1/red.jpg", ErrorCode.URL_INVALID, At.FETCH),
    "no-host": Unexamined("http:///red.jpg", ErrorCode.URL_INVALID, At.FETCH),
    "private-address": Unexamined("http://10.0.0.1/", ErrorCode.ADDRESS_FORBIDDEN, At.FETCH),
    "own-address": Unexamined("http://127.0.0.1/", ErrorCode.ADDRESS_FORBIDDEN, At.FETCH),
    "redirect-inward": Unexamined("/inward.jpg", ErrorCode.ADDRESS_FORBIDDEN, At.FETCH),
    "redirect-loop": Unexamined("/loop.jpg", ErrorCode.TOO_MANY_REDIRECTS, At.FETCH),
    "nobody-listens": Unexamined(
        "http://127.0.0.1:{closed}/", ErrorCode.CONNECT_FAILED, At.FETCH, True, _ATTEMPTS
    ),
    "404": Unexamined("/nowhere.jpg", ErrorCode.HTTP_CLIENT_ERROR, At.FETCH),
    "429": Unexamined("/busy.jpg", ErrorCode.HTTP_CLIENT_ERROR, At.FETCH, True, _ATTEMPTS),
    "500": Unexamined("/broken.jpg", ErrorCode.HTTP_SERVER_ERROR, At.FETCH, True, _ATTEMPTS),
    "slow": Unexamined("/slow.jpg", ErrorCode.FETCH_TIMEOUT, At.FETCH, True),
    "too-long": Unexamined("/long.jpg", ErrorCode.TOO_MANY_BYTES, At.FETCH),
    "empty": Unexamined("/empty.jpg", ErrorCode.EMPTY_BODY, At.FETCH),
    "html": Unexamined("/page.jpg", ErrorCode.NOT_AN_IMAGE, At.DECODE),
    "half": Unexamined("/half.jpg", ErrorCode.TRUNCATED, At.DECODE),
    "garbage": Unexamined("/garbage.png", ErrorCode.UNDECODABLE, At.DECODE),
    "huge": Unexamined("/huge.png", ErrorCode.TOO_MANY_PIXELS, At.DECODE),
}

#: What the policies' ``on_error`` makes of a failure; the first is asked for by naming none.
ON_ERROR = {None: "review", "strict": "block", "lenient": "allow"}

EXAMINED = {
    "url": ({"url": "/red.jpg"}, "block"),
    "redirected": ({"url": "/moved.jpg"}, "review"),
    "data": ({"data": base64.b64encode(picture("blue")).decode()}, "allow"),
    "digest": ({"url": "/red.jpg", "sha256": hashlib.sha256(_PHOTO).hexdigest()}, "block"),
}


def _padded(size: int) -> bytes:
    return request("padded", "http://127.0.0.1/" + "x" * (size - 200))


MALFORMED = {
    "empty": (b"", MalformedReason.EMPTY),
    "not-json": (b"http://127.0.0.1/red.jpg", MalformedReason.NOT_JSON),
    "cut-off": (request("cut-off", "http://127.0.0.1/")[:-1], MalformedReason.NOT_JSON),
    "no-object": (b"[]", MalformedReason.INVALID),
    "unknown-version": (
        request("unknown-version", "http://127.0.0.1/", schema_version=2),
        MalformedReason.UNSUPPORTED_SCHEMA_VERSION,
    ),
    "no-image": (request("no-image"), MalformedReason.INVALID),
    "two-images": (request("two-images", "http://127.0.0.1/", data=""), MalformedReason.INVALID),
    "wrong-type": (request("wrong-type", tenant=3, data=""), MalformedReason.INVALID),
    "not-base64": (request("not-base64", data="***"), MalformedReason.INVALID),
    "misspelt": (request("misspelt", "http://127.0.0.1/", polcy="x"), MalformedReason.INVALID),
    "too-large": (_padded(_REQUEST_MAX_BYTES + 500), MalformedReason.TOO_LARGE),
    "larger-than-letters": (_padded(_MESSAGE_MAX_BYTES + 500), MalformedReason.TOO_LARGE),
}


@dataclass(frozen=True)
class Outcome:
    on: Stage
    worker: Worker
    answers: dict[str, Verdict | DeadLetter]
    asked: int

    def verdict(self, name: str) -> Verdict:
        answer = self.answers[name]
        assert isinstance(answer, Verdict)
        return answer

    def dead_letter(self, name: str) -> DeadLetter:
        answer = self.answers[name]
        assert isinstance(answer, DeadLetter)
        return answer


def _records(on: Stage, closed_port: int) -> dict[str, bytes]:
    def absolute(url: str) -> str:
        if url.startswith("/"):
            return on.images.url(url)
        return url.replace("{closed}", str(closed_port))

    records = {f"malformed/{name}": value for name, (value, _) in MALFORMED.items()}
    for name, (fields, _) in EXAMINED.items():
        placed = {key: absolute(value) if key == "url" else value for key, value in fields.items()}
        records[f"examined/{name}"] = request(f"examined/{name}", **placed)
    for name, case in UNEXAMINED.items():
        label = f"unexamined/{name}"
        records[label] = request(label, absolute(case.url), **dict(case.fields))
    for policy in ON_ERROR:
        label = f"on-error/{policy}"
        records[label] = request(label, on.images.url("/gone.jpg"), policy=policy)
    return records


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Everything put on the topic at once, and what came of it."""
    folder: Path = tmp_path_factory.mktemp("policies")
    policies = [folder / f"{policy}.yaml" for policy in ON_ERROR]
    for path, (policy, action) in zip(policies, ON_ERROR.items(), strict=True):
        write_policy(path, id=policy or "first", on_error=action)

    async def answered(on: Stage, closed_port: int) -> dict[str, Verdict | DeadLetter]:
        async with Exchange(on) as exchange:
            return await answers_to(exchange, _records(on, closed_port))

    with (
        socket.socket() as bound,  # and not listening: nobody else takes its port meanwhile
        stage(REPLIES, policies[0], broker=KAFKA) as on,
    ):
        bound.bind(("127.0.0.1", 0))
        closed_port = bound.getsockname()[1]
        with fake_worker(
            on,
            POLICIES=",".join(map(str, policies)),
            KAFKA__REQUEST_MAX_BYTES=str(_REQUEST_MAX_BYTES),
            KAFKA__MESSAGE_MAX_BYTES=str(_MESSAGE_MAX_BYTES),
            FETCH__ALLOW=f"127.0.0.1:{on.images.port},127.0.0.1:{closed_port}",
            FETCH__MAX_BYTES=str(_FETCH_MAX_BYTES),
            FETCH__TOTAL_TIMEOUT_SECONDS=str(_FETCH_SECONDS),
            FETCH__ATTEMPTS=str(_ATTEMPTS),
            DECODE__MAX_PIXELS="1000000",
        ) as worker:
            answers = asyncio.run(answered(on, closed_port))
            yield Outcome(on, worker, answers, len(answers))


@pytest.mark.parametrize("name", EXAMINED)
def test_an_image_that_was_examined_gets_the_decision_of_the_policy(
    outcome: Outcome, name: str
) -> None:
    verdict = outcome.verdict(f"examined/{name}")
    _, decision = EXAMINED[name]
    assert (verdict.status, verdict.decision, verdict.action) == ("ok", decision, decision)
    assert verdict.error is None
    assert verdict.image is not None
    assert (verdict.image.type, verdict.image.width) == ("image/jpeg", 16)
    assert {category.id for category in verdict.categories} == {"red", "green"}


@pytest.mark.parametrize("name", UNEXAMINED)
def test_an_image_that_was_not_examined_says_why_and_is_not_clean(
    outcome: Outcome, name: str
) -> None:
    verdict = outcome.verdict(f"unexamined/{name}")
    expected = UNEXAMINED[name]
    assert (verdict.status, verdict.decision, verdict.action) == ("error", "undetermined", "review")
    assert verdict.error is not None
    assert (verdict.error.code, verdict.error.stage) == (expected.code, expected.stage)
    assert (verdict.error.retryable, verdict.error.attempts) == (
        expected.retryable,
        expected.attempts,
    )
    assert verdict.categories == ()


@pytest.mark.parametrize("policy", ON_ERROR)
def test_what_a_failure_means_is_what_the_policy_says(outcome: Outcome, policy: str | None) -> None:
    verdict = outcome.verdict(f"on-error/{policy}")
    assert (verdict.decision, verdict.action) == ("undetermined", ON_ERROR[policy])


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_a_request_becomes_a_dead_letter_that_says_why(
    outcome: Outcome, name: str
) -> None:
    letter = outcome.dead_letter(f"malformed/{name}")
    value, reason = MALFORMED[name]
    assert (letter.reason, letter.stage, letter.attempts) == (reason, At.PARSE, 1)
    assert letter.value_sha256 == hashlib.sha256(value).hexdigest()
    assert letter.value_bytes == len(value)
    assert letter.value_included == (name != "larger-than-letters")


def test_failures_that_may_pass_are_tried_again_and_others_are_not(outcome: Outcome) -> None:
    hits = outcome.on.images.hits
    assert hits["/broken.jpg"] == _ATTEMPTS
    assert hits["/nowhere.jpg"] == 1


def test_every_answer_is_counted(outcome: Outcome) -> None:
    worker = outcome.worker
    letters = sum(isinstance(answer, DeadLetter) for answer in outcome.answers.values())
    assert metric(worker, "imagewarden_requests_total", lane="live") == outcome.asked
    assert metric(worker, "imagewarden_dead_letters_total") == letters
    assert metric(worker, "imagewarden_verdicts_total") == outcome.asked - letters
    undetermined = metric(worker, "imagewarden_verdicts_total", decision="undetermined")
    assert metric(worker, "imagewarden_errors_total") == undetermined
    assert undetermined == len(UNEXAMINED) + len(ON_ERROR)


def test_an_image_that_is_allowed_although_nobody_examined_it_is_counted(outcome: Outcome) -> None:
    assert metric(outcome.worker, "imagewarden_fail_open_total") == 1
    assert metric(outcome.worker, "imagewarden_fail_open_total", policy="lenient") == 1


def test_each_request_has_one_line_in_the_log(outcome: Outcome) -> None:
    told = [line["request_id"] for line in outcome.worker.lines("request")]
    verdicts = [name for name, given in outcome.answers.items() if isinstance(given, Verdict)]
    assert sorted(told) == sorted(verdicts)
