"""Query strings, passwords and keys are secrets: they end up nowhere."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path

import pytest
import redis

from tests.certificates import Authority
from tests.e2e.scene import (
    all_records,
    answers_to,
    closed_port,
    eventually,
    fake_worker,
    logged,
    picture,
    request,
    starting_fake_worker,
)
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage
from worker.schema import DEAD_LETTER_HEADER, Verdict

# Each begins alike, so that one search finds them all, and ends in what it was
TOKEN = "hunter2-token"
MOVED = "hunter2-token-of-a-redirect"
USER = "hunter2-password-of-a-url"
CONTENT = "hunter2-inside-an-image"
REDIS = "hunter2-password-of-redis"
URL_KEY = "hunter2-key-of-urls"
SASL = "hunter2-password-of-kafka"
PLANTED = "hunter2"

REPLIES = {
    "/red.jpg": Reply(picture("red")),
    "/page.jpg": Reply(b"<!doctype html>" + TOKEN.encode()),
    "/half.jpg": Reply(picture("red")[:300] + CONTENT.encode()),
    "/busy.jpg": Reply(status=HTTPStatus.TOO_MANY_REQUESTS),
    "/broken.jpg": Reply(TOKEN.encode(), HTTPStatus.INTERNAL_SERVER_ERROR),
    "/private.jpg": Reply(TOKEN.encode(), HTTPStatus.FORBIDDEN),
    "/moved.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": f"/red.jpg?token={MOVED}"}),
    "/broken-there.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": f"/broken.jpg?token={MOVED}"}
    ),
    "/away.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": f"http://10.0.0.1/?token={MOVED}"}
    ),
    "/login.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": f"http://u:{MOVED}@10.0.0.1/"}
    ),
    "/nonsense.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": f"http://[{MOVED}"}),
    "/loop.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": f"/loop.jpg?t={MOVED}"}),
    "/header.jpg": Reply(picture("green"), headers={"Content-Encoding": "snappy"}),
    "/slow.jpg": Reply(picture("red"), delay_seconds=60.0),
}

MALFORMED = {
    "not-json": f"http://127.0.0.1/?token={TOKEN}".encode(),
    "two-images": request("two-images", f"http://127.0.0.1/?token={TOKEN}", data=""),
    "unknown-field": request("unknown-field", "http://127.0.0.1/", token=TOKEN),
    "wrong-type": request("wrong-type", data="", tenant=[TOKEN]),
    "not-base64": request("not-base64", data=f"{CONTENT}!"),
    "wrong-version": request("wrong-version", data="", schema_version=TOKEN),
}


def urls_on(on: Stage, *, refused: int, untrusted: int) -> list[str]:
    host = f"127.0.0.1:{on.images.port}"
    return [
        *(on.images.url(f"{path}?token={TOKEN}") for path in (*REPLIES, "/gone.jpg")),
        on.images.url(f"/red.jpg#{TOKEN}"),
        f"http://10.0.0.1/red.jpg?token={TOKEN}",
        f"ftp://127.0.0.1/red.jpg?token={TOKEN}",
        f"http://somebody:{USER}@{host}/red.jpg",
        f"http://{USER}@{host}/red.jpg",
        f"http://[/?token={TOKEN}",
        f"http://{host}?token={TOKEN}",
        f"https://127.0.0.1:{untrusted}/red.jpg?token={TOKEN}",
        f"http://127.0.0.1:{refused}/red.jpg?token={TOKEN}",
        f"http://nowhere.invalid/red.jpg?token={TOKEN}",
    ]


def data_requests() -> dict[str, bytes]:
    whole = picture("blue", CONTENT)
    return {
        name: request(name, data=base64.b64encode(image).decode())
        for name, image in {"data": whole, "half": whole[:100], "none": CONTENT.encode()}.items()
    }


@pytest.fixture
async def untrusted(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a TLS server whose certificate nobody vouches for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Authority(tmp_path, "nobody").signed("server"))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_what_was_planted_is_in_no_answer_log_metric_or_cache(
    on: Stage, untrusted: int
) -> None:
    on.images.replies |= REPLIES
    refused = closed_port()
    urls = urls_on(on, refused=refused, untrusted=untrusted)
    given = {f"{n}": request(f"{n}", url) for n, url in enumerate(urls)} | data_requests()
    with redis.Redis.from_url(on.redis) as client:
        client.config_set("requirepass", REDIS)
    redis_url = on.redis.replace("redis://", f"redis://:{REDIS}@")
    settings = {
        "LOG__LEVEL": "debug",
        "REDIS__URL": redis_url,
        "CACHE__URL_KEY": URL_KEY,
        "FETCH__ALLOW": ",".join(
            f"127.0.0.1:{port}" for port in (on.images.port, refused, untrusted)
        ),
        "FETCH__TOTAL_TIMEOUT_SECONDS": "4",
        "WORK__MAX_REJECTED_SHARE": "1",
    }
    async with Exchange(on) as exchange:
        with fake_worker(on, **settings) as worker:
            answers = await answers_to(exchange, given | MALFORMED)
            metrics = worker.metrics()
            assert worker.stop() == 0
    verdicts = [answer for answer in answers.values() if isinstance(answer, Verdict)]
    assert len(verdicts) == len(given)
    codes = {str(verdict.error.code) for verdict in verdicts if verdict.error}
    assert codes >= {
        *("url_invalid", "address_forbidden", "dns_failed", "connect_failed", "tls_failed"),
        *("http_client_error", "http_server_error", "fetch_timeout", "too_many_redirects"),
        *("not_an_image", "truncated"),
    }

    topics = on.topics
    letters = await all_records(on, topics.dead_letters_topic)
    again = await all_records(on, topics.retries_topic)
    with redis.Redis.from_url(redis_url) as client:
        kept = {bytes(key): client.get(key) for key in client.scan_iter()}
    assert kept
    assert len(letters) == len(MALFORMED)
    places = {
        "verdicts": await all_records(on, topics.verdicts_topic),
        "embeddings": await all_records(on, topics.embeddings_topic),
        # The value of these two is the record as it came; what is beside it, we wrote
        "dead letters": [dict(letter.headers)[DEAD_LETTER_HEADER] for letter in letters],
        "retries": [(retry.key, retry.headers) for retry in again],
        "log": worker.log.read_text(),
        "metrics": metrics,
        "redis": kept,
    }
    assert found_in(places) == []
    # And the search finds what there is: it is in the requests, every kind of it
    requests = await all_records(on, topics.requests_topic)
    assert all(secret in repr(requests) for secret in (TOKEN, USER))
    assert found_in({"requests": requests}) == ["requests"]


async def test_passwords_are_not_in_the_log_of_a_worker_that_cannot_connect(on: Stage) -> None:
    settings = {
        "LOG__LEVEL": "debug",
        "KAFKA__BOOTSTRAP": f"127.0.0.1:{closed_port()}",
        "KAFKA_SECURITY__PROTOCOL": "SASL_SSL",
        "KAFKA_SECURITY__SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SECURITY__SASL_USERNAME": "worker",
        "KAFKA_SECURITY__SASL_PASSWORD": SASL,
        "REDIS__URL": f"redis://:{REDIS}@127.0.0.1:{closed_port()}/0",
        "CACHE__URL_KEY": URL_KEY,
    }
    with starting_fake_worker(on, **settings) as worker:
        await eventually(lambda: logged(worker, "broker_unreachable"), "it tells of the outage")
        assert worker.stop() == 0
    assert found_in({"log": worker.log.read_text()}) == []


def found_in(places: Mapping[str, object]) -> list[str]:
    """Where anything is that was planted, in plain or in base64."""
    return [place for place, content in places.items() if any(_traces(repr(content)))]


def _traces(text: str) -> Iterable[bool]:
    yield PLANTED in text
    for shift in range(3):  # base64 of the same text differs by where it begins
        encoded = base64.b64encode(b"\0" * shift + PLANTED.encode())
        yield encoded[(shift * 8 + 5) // 6 : -4].decode() in text
