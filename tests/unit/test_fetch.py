"""Downloads from a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
import shutil
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.http_server import (
    BODY,
    LOOPBACK,
    Answer,
    Server,
    redirect,
    response,
    tls_server,
    unframed,
    write_certificate,
)
from worker.connections import SocketStream
from worker.egress import EgressPolicy
from worker.errors import ErrorCode, Misconfigured, Stage, Unexaminable
from worker.fetch import HttpFetcher, tls_context
from worker.telemetry import REGISTRY
from worker.types import Fetched, NotModified

FetcherOf = Callable[..., HttpFetcher]


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_in_body(writer: asyncio.StreamWriter) -> None:
    writer.write(response(BODY[:100], Content_Length="50000"))
    await asyncio.Event().wait()


async def break_off_in_body(writer: asyncio.StreamWriter) -> None:
    writer.write(response(BODY[:100], Content_Length="50000"))
    await writer.drain()
    writer.close()


async def break_off(writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def fetcher_of() -> AsyncIterator[FetcherOf]:
    """Builds fetchers that may reach the given servers, and closes them."""
    built: list[HttpFetcher] = []

    def build(*servers: Server, **settings: Any) -> HttpFetcher:
        settings = {
            "egress": EgressPolicy(allow=[f"{LOOPBACK}:{server.port}" for server in servers]),
            "retry_backoff_seconds": 0.001,
            **settings,
        }
        built.append(HttpFetcher(**settings))
        return built[-1]

    yield build
    for fetcher in built:
        await fetcher.close()


@pytest.fixture
def fetcher(fetcher_of: FetcherOf, server: Server) -> HttpFetcher:
    return fetcher_of(server)


async def body_of(fetcher: HttpFetcher, url: str) -> bytes:
    fetched = await fetcher.fetch(url)
    assert isinstance(fetched, Fetched)
    return fetched.body


async def failure_of(fetcher: HttpFetcher, url: str) -> Unexaminable:
    with pytest.raises(Unexaminable) as caught:
        await fetcher.fetch(url)
    assert caught.value.stage is Stage.FETCH
    return caught.value


def count(metric: str) -> float:
    return REGISTRY.get_sample_value(f"imagewarden_{metric}_total") or 0.0


# ---------------------------------------------------------------- bodies


async def test_a_body_is_downloaded_with_its_etag(server: Server, fetcher: HttpFetcher) -> None:
    url = server.answer("/a.jpg", response(ETag='"v1"'))
    assert await fetcher.fetch(url) == Fetched(BODY, etag='"v1"')


async def test_a_body_without_length_ends_with_its_connection(
    server: Server, fetcher: HttpFetcher
) -> None:
    assert await body_of(fetcher, server.answer("/", unframed(BODY))) == BODY


async def test_a_chunked_body_is_put_together(server: Server, fetcher: HttpFetcher) -> None:
    chunked = response(b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    url = server.answer("/", chunked + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert await body_of(fetcher, url) == b"abcde"


async def test_a_body_larger_than_the_receive_buffer_arrives_whole(
    server: Server, fetcher: HttpFetcher
) -> None:
    body = random.Random(1).randbytes(8 * 2**20)
    assert await body_of(fetcher, server.answer("/", response(body))) == body


async def test_html_is_handed_on_whatever_its_type_says(
    server: Server, fetcher: HttpFetcher
) -> None:
    url = server.answer("/a.jpg", response(b"<html>", Content_Type="text/html"))
    assert await body_of(fetcher, url) == b"<html>"


async def test_an_empty_body_is_unexaminable(server: Server, fetcher: HttpFetcher) -> None:
    failure = await failure_of(fetcher, server.answer("/", response(b"")))
    assert (failure.code, failure.retryable) == (ErrorCode.EMPTY_BODY, False)


async def test_attempts_and_received_bytes_are_counted(
    server: Server, fetcher: HttpFetcher
) -> None:
    attempts, received = count("fetch_attempts"), count("fetched_bytes")
    await body_of(fetcher, server.answer("/", response(b"", "500 Oops"), response()))
    assert count("fetch_attempts") - attempts == 2
    assert count("fetched_bytes") - received == len(BODY)


# ---------------------------------------------------------------- caps


async def test_a_body_of_exactly_the_cap_is_let_through(
    server: Server, fetcher_of: FetcherOf
) -> None:
    fetcher = fetcher_of(server, max_bytes=len(BODY))
    assert await body_of(fetcher, server.answer("/", response())) == BODY


async def test_a_content_length_over_the_cap_is_refused_before_the_body(
    server: Server, fetcher_of: FetcherOf
) -> None:
    fetcher = fetcher_of(server, max_bytes=1000)
    received = count("fetched_bytes")
    failure = await failure_of(fetcher, server.answer("/", hang_in_body))
    assert (failure.code, failure.retryable) == (ErrorCode.TOO_MANY_BYTES, False)
    assert count("fetched_bytes") == received


async def test_a_body_over_the_cap_without_content_length_is_cut_off(
    server: Server, fetcher_of: FetcherOf
) -> None:
    fetcher = fetcher_of(server, max_bytes=len(BODY) - 1)
    failure = await failure_of(fetcher, server.answer("/", unframed(BODY)))
    assert failure.code is ErrorCode.TOO_MANY_BYTES


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)],
)
async def test_a_body_compressed_unasked_is_unpacked(
    server: Server, fetcher: HttpFetcher, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    url = server.answer("/", response(compress(BODY), Content_Encoding=coding))
    assert await body_of(fetcher, url) == BODY
    assert "Accept-Encoding: identity" in server.seen[0]


async def test_a_compressed_bomb_is_not_unpacked(server: Server, fetcher_of: FetcherOf) -> None:
    fetcher = fetcher_of(server, max_bytes=100_000)
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    url = server.answer("/", response(bomb, Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        assert (await failure_of(fetcher, url)).code is ErrorCode.TOO_MANY_BYTES
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # its peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("br", b"x"),
        ("zstd", b"x"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
        ("gzip, identity", gzip.compress(BODY)),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
        ("gzip", b"not compressed"),
        ("gzip", gzip.compress(BODY)[:-9]),
        ("gzip", gzip.compress(BODY) + gzip.compress(BODY)),
    ],
    ids=["br", "zstd", "twice", "with identity", "two", "not at all", "cut off", "more behind"],
)
async def test_a_body_that_cannot_be_unpacked_whole_is_unexaminable(
    server: Server, fetcher: HttpFetcher, coding: str, body: bytes
) -> None:
    failure = await failure_of(fetcher, server.answer("/", response(body, Content_Encoding=coding)))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_FAILED, False)


async def test_a_bomb_inside_a_compressed_body_is_not_unpacked_a_second_time(
    server: Server, fetcher: HttpFetcher
) -> None:
    bomb = gzip.compress(gzip.compress(bytes(50_000_000)))
    url = server.answer("/", response(bomb, Content_Encoding="gzip"))
    assert len(await body_of(fetcher, url)) < 100_000  # it is unpacked as often as it says


async def test_two_headers_for_encodings_are_no_way_around_the_cap(
    server: Server, fetcher: HttpFetcher
) -> None:
    twice = response(gzip.compress(BODY), Content_Encoding="gzip")
    twice = twice.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1)
    failure = await failure_of(fetcher, server.answer("/", twice))
    assert failure.code is ErrorCode.FETCH_FAILED


@pytest.mark.parametrize("coding", ["", "identity", "IDENTITY"])
async def test_no_encoding_may_be_said_in_several_ways(
    server: Server, fetcher: HttpFetcher, coding: str
) -> None:
    assert await body_of(fetcher, server.answer("/", response(Content_Encoding=coding))) == BODY


async def test_more_headers_than_anyone_sends_are_refused(
    server: Server, fetcher: HttpFetcher
) -> None:
    many = response().replace(b"\r\n", b"\r\n" + b"X: y\r\n" * 300, 1)
    failure = await failure_of(fetcher, server.answer("/", many))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_FAILED, False)


@pytest.mark.parametrize("line", [b"X-%d: x\r\n", b"%d" + b"x" * 2000], ids=["many", "long"])
async def test_headers_that_never_end_are_cut_off(
    server: Server, fetcher_of: FetcherOf, line: bytes
) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while sent < 50_000_000:
            lines = b"".join(line % number for number in range(100))
            sent += len(lines)
            writer.write(lines)
            await writer.drain()

    fetcher = fetcher_of(server, attempts=1)
    failure = await failure_of(fetcher, server.answer("/", flood))
    assert failure.code is ErrorCode.FETCH_FAILED
    assert sent < 20_000_000  # what fits into both sides' buffers, and no more


async def test_a_body_in_countless_pieces_is_given_up(server: Server, fetcher: HttpFetcher) -> None:
    async def crumble(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n" * 1000)
            await writer.drain()

    failure = await failure_of(fetcher, server.answer("/", crumble))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_FAILED, False)


async def test_others_get_their_turn_while_what_was_received_is_read() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    stream = SocketStream()
    for _ in range(50):
        stream.data_received(b"x")
    other = asyncio.create_task(take_turns())
    for _ in range(50):
        await stream.read(64)
    other.cancel()
    assert turns >= 50


class TransportWithoutSocket(asyncio.Transport):
    """As asyncio's of TLS is, for the turn of the event loop after its connection was reset."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


def test_a_connection_whose_socket_is_gone_is_not_used_again() -> None:
    stream = SocketStream()
    stream.connection_made(TransportWithoutSocket())
    assert stream.get_extra_info("is_readable")  # what idle connections are asked


# ---------------------------------------------------------------- statuses and retries


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone", "451 Law"])
async def test_a_client_error_is_final(server: Server, fetcher: HttpFetcher, status: str) -> None:
    failure = await failure_of(fetcher, server.answer("/", response(b"no", status)))
    assert (failure.code, failure.retryable) == (ErrorCode.HTTP_CLIENT_ERROR, False)
    assert failure.attempts == len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (response(b"no", "408 Timeout"), ErrorCode.HTTP_CLIENT_ERROR),
        (response(b"no", "425 Early"), ErrorCode.HTTP_CLIENT_ERROR),
        (response(b"no", "429 Slow Down"), ErrorCode.HTTP_CLIENT_ERROR),
        (response(b"no", "500 Oops"), ErrorCode.HTTP_SERVER_ERROR),
        (response(b"no", "503 Busy"), ErrorCode.HTTP_SERVER_ERROR),
        (break_off, ErrorCode.FETCH_FAILED),
        (break_off_in_body, ErrorCode.FETCH_FAILED),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ErrorCode.FETCH_FAILED),
    ],
    ids=["408", "425", "429", "500", "503", "breaks off", "breaks off in its body", "not HTTP"],
)
class TestTransientFailure:
    async def test_is_tried_again(
        self, server: Server, fetcher: HttpFetcher, answer: Answer, code: ErrorCode
    ) -> None:
        url = server.answer("/", answer, answer, response())
        assert await body_of(fetcher, url) == BODY
        assert len(server.seen) == 3

    async def test_is_retryable_once_all_attempts_are_used(
        self, server: Server, fetcher: HttpFetcher, answer: Answer, code: ErrorCode
    ) -> None:
        failure = await failure_of(fetcher, server.answer("/", answer))
        assert (failure.code, failure.retryable) == (code, True)
        assert failure.attempts == len(server.seen) == 3


async def test_a_final_failure_after_a_transient_one_says_how_often_it_was_tried(
    server: Server, fetcher: HttpFetcher
) -> None:
    url = server.answer("/", response(b"", "500 Oops"), response(b"", "404 Not Found"))
    failure = await failure_of(fetcher, url)
    assert (failure.code, failure.retryable) == (ErrorCode.HTTP_CLIENT_ERROR, False)
    assert failure.attempts == 2


@pytest.mark.parametrize("status", ["206 Partial Content", "304 Not Modified", "302 Found"])
async def test_an_answer_that_makes_no_sense_is_unexaminable(
    server: Server, fetcher: HttpFetcher, status: str
) -> None:
    failure = await failure_of(fetcher, server.answer("/", response(b"", status)))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_FAILED, False)


async def test_what_the_server_asks_for_is_waited_for(
    server: Server, fetcher_of: FetcherOf
) -> None:
    times: list[float] = []

    async def busy(writer: asyncio.StreamWriter) -> None:
        times.append(asyncio.get_running_loop().time())
        writer.write(response(b"", "503 Busy", Retry_After="1") if len(times) == 1 else response())

    await body_of(fetcher_of(server), server.answer("/", busy))
    assert times[1] - times[0] >= 1


@pytest.mark.parametrize("status", ["429 Slow Down", "503 Busy"])
async def test_who_asks_for_more_time_than_there_is_is_not_asked_again(
    server: Server, fetcher: HttpFetcher, status: str
) -> None:
    url = server.answer("/", response(b"", status, Retry_After="3600"))
    failure = await failure_of(fetcher, url)
    assert (failure.attempts, failure.retryable) == (1, True)


@pytest.mark.parametrize(
    "asked", ["", "-1", "soon", "1.5", "٣", "9" * 30, "Wed, 21 Oct 2099 07:28"]
)
async def test_a_request_for_time_that_cannot_be_read_is_left_alone(
    server: Server, fetcher: HttpFetcher, asked: str
) -> None:
    busy = response(b"", "503 Busy", Retry_After=asked)
    assert await body_of(fetcher, server.answer("/", busy, response())) == BODY


@pytest.mark.parametrize("stalled", [hang, hang_in_body], ids=["headers", "body"])
async def test_a_stalled_attempt_leaves_time_for_another(
    server: Server, fetcher_of: FetcherOf, stalled: Answer
) -> None:
    fetcher = fetcher_of(server, read_timeout_seconds=0.2, attempts=10)
    assert await body_of(fetcher, server.answer("/", stalled, response())) == BODY


async def test_no_retry_is_started_that_is_not_worth_it(
    server: Server, fetcher: HttpFetcher
) -> None:
    worth = iter([True, False])
    url = server.answer("/", response(b"", "503 Busy"))
    with pytest.raises(Unexaminable) as raised:
        await fetcher.fetch(url, worth_retrying=lambda: next(worth))
    failure = raised.value
    assert (failure.code, failure.retryable) == (ErrorCode.HTTP_SERVER_ERROR, True)
    assert failure.attempts == len(server.seen) == 2


async def test_an_answer_that_stalls_every_time_is_a_retryable_timeout(
    server: Server, fetcher_of: FetcherOf
) -> None:
    fetcher = fetcher_of(server, read_timeout_seconds=0.01)
    failure = await failure_of(fetcher, server.answer("/", hang))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_TIMEOUT, True)
    assert failure.attempts == len(server.seen) == 3


async def test_a_refused_connection_is_retryable(fetcher_of: FetcherOf) -> None:
    with socket.socket() as unheard:  # bound, and nobody listens
        unheard.bind((LOOPBACK, 0))
        endpoint = f"{LOOPBACK}:{unheard.getsockname()[1]}"
        fetcher = fetcher_of(egress=EgressPolicy(allow=[endpoint]))
        failure = await failure_of(fetcher, f"http://{endpoint}/")
    assert (failure.code, failure.retryable) == (ErrorCode.CONNECT_FAILED, True)
    assert failure.attempts == 3


# ---------------------------------------------------------------- deadline


@pytest.mark.parametrize("answer", [hang, hang_in_body], ids=["headers", "body"])
async def test_an_answer_past_the_deadline_is_a_timeout(
    server: Server, fetcher_of: FetcherOf, answer: Answer
) -> None:
    fetcher = fetcher_of(server, total_timeout_seconds=0.1)
    failure = await failure_of(fetcher, server.answer("/", answer))
    assert (failure.code, failure.retryable) == (ErrorCode.FETCH_TIMEOUT, True)


async def test_a_body_that_keeps_dripping_is_a_timeout(
    server: Server, fetcher_of: FetcherOf
) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"", Content_Length="50000"))
        while True:
            writer.write(b".")
            await asyncio.sleep(0.01)

    fetcher = fetcher_of(server, total_timeout_seconds=0.2)
    failure = await failure_of(fetcher, server.answer("/", drip))
    assert failure.code is ErrorCode.FETCH_TIMEOUT


async def test_no_retry_is_started_that_cannot_begin_before_the_deadline(
    server: Server, fetcher_of: FetcherOf
) -> None:
    fetcher = fetcher_of(server, total_timeout_seconds=5, retry_backoff_seconds=60)
    failure = await failure_of(fetcher, server.answer("/", response(b"", "503 Busy")))
    assert (failure.code, failure.attempts) == (ErrorCode.HTTP_SERVER_ERROR, 1)
    assert failure.retryable


async def test_an_error_page_that_never_ends_is_still_that_error(
    server: Server, fetcher: HttpFetcher
) -> None:
    async def not_found(writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"sor", "404 Not Found", Content_Length="6"))
        await asyncio.Event().wait()

    failure = await failure_of(fetcher, server.answer("/", not_found))
    assert failure.code is ErrorCode.HTTP_CLIENT_ERROR


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
async def test_a_redirect_is_followed(server: Server, fetcher: HttpFetcher, status: str) -> None:
    server.answer("/b/c.jpg", response())
    assert await body_of(fetcher, server.answer("/b/a", redirect("c.jpg?x=1", status))) == BODY
    assert server.seen[-1][0] == "GET /b/c.jpg?x=1 HTTP/1.1"


async def test_as_many_redirects_as_allowed_are_followed_and_no_more(
    server: Server, fetcher: HttpFetcher
) -> None:
    for hop in range(4):
        server.answer(f"/{hop}", redirect(f"/{hop + 1}"))
    server.answer("/4", response())
    assert await body_of(fetcher, server.url("/1")) == BODY
    failure = await failure_of(fetcher, server.url("/0"))
    assert (failure.code, failure.retryable) == (ErrorCode.TOO_MANY_REDIRECTS, False)


async def test_a_redirect_loop_ends(server: Server, fetcher: HttpFetcher) -> None:
    failure = await failure_of(fetcher, server.answer("/", redirect("/")))
    assert failure.code is ErrorCode.TOO_MANY_REDIRECTS
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://10.0.0.1/", ErrorCode.ADDRESS_FORBIDDEN),
        ("http://169.254.169.254/latest/meta-data/", ErrorCode.ADDRESS_FORBIDDEN),
        ("http://127.0.0.1/", ErrorCode.ADDRESS_FORBIDDEN),
        ("http://localhost/", ErrorCode.ADDRESS_FORBIDDEN),
        ("//2130706433/", ErrorCode.URL_INVALID),
        ("file:///etc/passwd", ErrorCode.URL_INVALID),
        ("http://user:password@127.0.0.1/", ErrorCode.URL_INVALID),
    ],
)
async def test_every_hop_is_judged_anew(
    server: Server, fetcher: HttpFetcher, location: str, code: ErrorCode
) -> None:
    failure = await failure_of(fetcher, server.answer("/", redirect(location)))
    assert (failure.code, failure.retryable) == (code, False)
    assert failure.attempts == len(server.seen) == 1


# ---------------------------------------------------------------- validators


async def test_content_that_has_not_changed_is_not_downloaded(
    server: Server, fetcher: HttpFetcher
) -> None:
    url = server.answer("/", response(b"", "304 Not Modified", ETag='"v1"'))
    assert await fetcher.fetch(url, etag='"v1"') == NotModified()
    assert 'If-None-Match: "v1"' in server.seen[0]


async def test_content_that_has_changed_is_downloaded(server: Server, fetcher: HttpFetcher) -> None:
    url = server.answer("/", response(ETag='W/"v2"'))
    assert await fetcher.fetch(url, etag='"v1"') == Fetched(BODY, etag='W/"v2"')


@pytest.mark.parametrize("etag", ["v1", "", '"a" "b"', '"é"', '"' + "x" * 600 + '"'])
async def test_a_malformed_etag_is_neither_kept_nor_sent(
    server: Server, fetcher: HttpFetcher, etag: str
) -> None:
    url = server.answer("/", response(ETag=etag))
    assert await fetcher.fetch(url, etag=etag) == Fetched(BODY, etag=None)
    assert not any(line.startswith("If-None-Match") for line in server.seen[0])


async def test_an_etag_cannot_smuggle_a_header(server: Server, fetcher: HttpFetcher) -> None:
    url = server.answer("/", response())
    await fetcher.fetch(url, etag='"v1"\r\nEvil: 1')
    assert not any("Evil" in line for line in server.seen[0])


# ---------------------------------------------------------------- connections


async def test_a_connection_is_used_again(server: Server, fetcher: HttpFetcher) -> None:
    server.answer("/missing", response(b"no", "404 Not Found"))
    server.answer("/moved", redirect("/"))
    server.answer("/", response())
    for _ in range(3):
        await failure_of(fetcher, server.url("/missing"))
        await body_of(fetcher, server.url("/moved"))
    assert server.connections == 1


async def test_a_connection_that_the_server_closed_is_not_used_again(
    server: Server, fetcher: HttpFetcher
) -> None:
    closed = asyncio.Event()

    async def answer_and_close(writer: asyncio.StreamWriter) -> None:
        writer.write(response())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    url = server.answer("/", answer_and_close)
    await body_of(fetcher, url)
    await closed.wait()
    attempts = count("fetch_attempts")
    await body_of(fetcher, url)
    assert server.connections == 2
    assert count("fetch_attempts") - attempts == 1


async def test_what_a_server_sends_unasked_answers_no_later_request(
    server: Server, fetcher: HttpFetcher
) -> None:
    url = server.answer("/", response() + response(b"of nobody"))
    assert await body_of(fetcher, url) == BODY
    assert await body_of(fetcher, url) == BODY
    assert server.connections == 2


async def test_an_answer_may_be_announced(server: Server, fetcher: HttpFetcher) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    url = server.answer("/", early + early + response())
    assert await body_of(fetcher, url) == BODY


async def test_no_more_connections_than_allowed_are_in_use(
    server: Server, fetcher_of: FetcherOf
) -> None:
    server.answer("/", response())
    fetcher = fetcher_of(server, max_connections=3)
    await asyncio.gather(*(body_of(fetcher, server.url()) for _ in range(30)))
    assert server.connections <= 3


async def test_cancelled_downloads_leave_every_connection_slot_usable(
    server: Server, fetcher_of: FetcherOf
) -> None:
    slots, arrived, all_arrived = 4, 0, asyncio.Event()

    async def wait_for_the_others(writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == slots:
            all_arrived.set()
        await all_arrived.wait()
        writer.write(response())

    fetcher = fetcher_of(server, max_connections=slots)

    async def cancelled_after(seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await fetcher.fetch(server.url("/"))

    server.answer("/", response(), unframed(BODY), response())
    server.answer("/together", wait_for_the_others)
    moments = random.Random(7)
    for _ in range(60):
        await asyncio.gather(*(cancelled_after(moments.random() * 0.006) for _ in range(12)))
    together = [body_of(fetcher, server.url("/together")) for _ in range(slots)]
    assert await asyncio.gather(*together) == [BODY] * slots


# ---------------------------------------------------------------- names and addresses


async def test_the_checked_address_is_dialled_while_the_server_sees_the_name(
    server: Server, fetcher_of: FetcherOf
) -> None:
    asked = []

    async def resolve(name: str) -> Sequence[str]:
        asked.append(name)
        return [LOOPBACK]

    server.answer("/", response())
    fetcher = fetcher_of(server, resolver=resolve)
    # A name that exists nowhere: an answer means that our own backend connected.
    assert await body_of(fetcher, server.url(host="images.invalid")) == BODY
    assert asked == ["images.invalid"]
    assert f"Host: images.invalid:{server.port}" in server.seen[0]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_name_with_a_good_and_a_bad_address_is_refused(
    server: Server, fetcher_of: FetcherOf, order: int
) -> None:
    async def resolve(name: str) -> Sequence[str]:
        return [LOOPBACK, "10.0.0.1"][::order]

    fetcher = fetcher_of(server, resolver=resolve)
    failure = await failure_of(fetcher, server.url(host="images.invalid"))
    assert (failure.code, failure.retryable) == (ErrorCode.ADDRESS_FORBIDDEN, False)
    assert server.connections == 0


async def test_a_name_that_is_rebound_is_refused_at_its_next_connection(
    server: Server, fetcher_of: FetcherOf
) -> None:
    answers = [[LOOPBACK], ["169.254.169.254"]]

    async def resolve(name: str) -> Sequence[str]:
        return answers.pop(0)

    server.answer("/", response(Connection="close"))
    fetcher = fetcher_of(server, resolver=resolve)
    assert await body_of(fetcher, server.url(host="images.invalid")) == BODY
    failure = await failure_of(fetcher, server.url(host="images.invalid"))
    assert failure.code is ErrorCode.ADDRESS_FORBIDDEN
    assert (server.connections, answers) == (1, [])


async def test_an_address_nobody_allowed_is_refused_before_anything_is_tried(
    server: Server, fetcher_of: FetcherOf
) -> None:
    attempts = count("fetch_attempts")
    failure = await failure_of(fetcher_of(), server.url())
    assert failure.code is ErrorCode.ADDRESS_FORBIDDEN
    assert server.connections == 0
    assert count("fetch_attempts") == attempts


async def test_proxies_of_the_environment_are_not_used(
    server: Server, fetcher_of: FetcherOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answer("/", response())
    assert await body_of(fetcher_of(server), server.url()) == BODY


# ---------------------------------------------------------------- what is given away


async def test_cookies_are_not_kept(server: Server, fetcher: HttpFetcher) -> None:
    server.answer("/", redirect("/again", "302 Found"))
    server.answer("/again", response(Set_Cookie="id=1; Path=/"))
    await body_of(fetcher, server.url())
    await body_of(fetcher, server.url())
    assert not any(line.lower().startswith("cookie") for head in server.seen for line in head)


async def test_query_strings_reach_no_log_and_no_message(
    server: Server, fetcher: HttpFetcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer("/moved", redirect("/missing?s3cret=2"))
    server.answer("/missing", response(b"", "404 Not Found"))
    server.answer("/broken", break_off)
    server.answer("/to-hell", redirect("http://10.0.0.1/?s3cret"))
    for path in ("/moved", "/missing", "/broken", "/to-hell"):
        assert "s3cret" not in str(await failure_of(fetcher, server.url(f"{path}?s3cret=1")))
    assert "s3cret" not in caplog.text


# ---------------------------------------------------------------- hostile servers

# Not text at all, or an HTTP head put together from parts that are wrong in their own ways.
_HEADERS = """
    Content-Length: 3|Content-Length: -1|Content-Length: 99999999999999999999999
    Content-Length: 3, 4|Transfer-Encoding: chunked|Transfer-Encoding: gzip
    Content-Encoding: gzip|Content-Encoding: \xff|Location: http://[|Location: |Location: \xff\xfe
    Location: //|ETag: \xff|: x|no colon|\x00: \x00|Connection: close|Connection: upgrade
"""
_headers = st.sampled_from(
    [header.strip().encode("latin-1") for header in _HEADERS.replace("\n", "|").split("|")]
)
_statuses = st.sampled_from([b"100", b"101", b"200", b"204", b"302", b"304", b"404", b"999", b"x"])
_answers = st.binary(max_size=60) | st.builds(
    lambda status, head, body: b"\r\n".join([b"HTTP/1.1 " + status + b" x", *head, b"", body]),
    _statuses,
    st.lists(_headers, max_size=4),
    st.binary(max_size=20) | st.just(b"3\r\nabc\r\n0\r\n\r\n"),
)


@settings(max_examples=150, deadline=None)
@given(_answers)
def test_whatever_a_server_sends_ends_in_a_body_or_unexaminable(answer: bytes) -> None:
    async def answer_and_close(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = Server()
        await server.start()
        fetcher = HttpFetcher(
            egress=EgressPolicy(allow=[f"{LOOPBACK}:{server.port}"]),
            attempts=1,
            ssl_context=ssl.create_default_context(),
        )
        try:
            with suppress(Unexaminable):
                fetched = await fetcher.fetch(server.answer("/", answer_and_close))
                assert isinstance(fetched, Fetched) and fetched.body
        finally:
            await fetcher.close()
            await server.close()

    asyncio.run(run())


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key, in one file, of images.invalid."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "images.invalid.pem"
    write_certificate(file, "images.invalid")
    return file


async def resolve_to_loopback(name: str) -> Sequence[str]:
    return [LOOPBACK]


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def test_the_certificate_is_checked_against_the_name_not_the_address(
    certificate: Path, trusting: ssl.SSLContext, fetcher_of: FetcherOf
) -> None:
    async with tls_server(certificate) as server:
        fetcher = fetcher_of(server, resolver=resolve_to_loopback, ssl_context=trusting)
        server.answer("/", response())
        url = server.url(host="images.invalid", scheme="https")
        assert await body_of(fetcher, url) == BODY
        assert await body_of(fetcher, url) == BODY
        assert server.names == ["images.invalid"]


@pytest.mark.parametrize("host", ["other.invalid", LOOPBACK])
async def test_another_name_on_the_same_address_gets_a_connection_and_a_check_of_its_own(
    certificate: Path, trusting: ssl.SSLContext, fetcher_of: FetcherOf, host: str
) -> None:
    async with tls_server(certificate) as server:
        fetcher = fetcher_of(server, resolver=resolve_to_loopback, ssl_context=trusting)
        server.answer("/", response())
        await body_of(fetcher, server.url(host="images.invalid", scheme="https"))
        failure = await failure_of(fetcher, server.url(host=host, scheme="https"))
        assert (failure.code, failure.retryable) == (ErrorCode.TLS_FAILED, False)


async def test_a_certificate_nobody_vouches_for_is_refused(
    certificate: Path, fetcher_of: FetcherOf
) -> None:
    async with tls_server(certificate) as server:
        fetcher = fetcher_of(server, resolver=resolve_to_loopback)
        failure = await failure_of(fetcher, server.url(host="images.invalid", scheme="https"))
        assert (failure.code, failure.retryable) == (ErrorCode.TLS_FAILED, False)


async def test_an_authority_of_ones_own_is_believed_besides_the_usual_ones(
    certificate: Path, fetcher_of: FetcherOf
) -> None:
    context = tls_context(str(certificate))
    assert len(context.get_ca_certs()) > 50
    async with tls_server(certificate) as server:
        server.answer("/", response())
        fetcher = fetcher_of(server, resolver=resolve_to_loopback, ssl_context=context)
        assert await body_of(fetcher, server.url(host="images.invalid", scheme="https")) == BODY


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["no", "empty", "odd"])
def test_authorities_that_cannot_be_read_are_misconfigured(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Misconfigured, match=r"ca\.pem.*PEM certificates"):
        tls_context(str(file))


async def test_a_server_that_does_not_speak_tls_is_retryable(
    server: Server, fetcher_of: FetcherOf
) -> None:
    async def plain(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(lambda _, writer: plain(writer), LOOPBACK, 0)
    port = listener.sockets[0].getsockname()[1]
    fetcher = fetcher_of(egress=EgressPolicy(allow=[f"{LOOPBACK}:{port}"]))
    try:
        failure = await failure_of(fetcher, f"https://{LOOPBACK}:{port}/")
        assert (failure.code, failure.retryable) == (ErrorCode.TLS_FAILED, True)
    finally:
        listener.close()
        await listener.wait_closed()
