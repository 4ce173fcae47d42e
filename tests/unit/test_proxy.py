"""Downloads through an HTTP proxy on loopback."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.connect_proxy import LOOPBACK, ConnectProxy
from tests.unit.http_server import BODY, Server, redirect, response, tls_server, write_certificate
from worker.egress import EgressPolicy
from worker.errors import ErrorCode, Misconfigured, Unexaminable
from worker.fetch import HttpFetcher
from worker.proxy import EgressProxy
from worker.types import Fetched

PUBLIC, PUBLIC_IPV6 = "93.184.215.14", "2606:4700::6810:84e5"
FetcherThrough = Callable[..., HttpFetcher]


async def public(name: str) -> Sequence[str]:
    return [PUBLIC]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    server.answer("/", response())
    yield server
    await server.close()


@pytest.fixture
async def fetcher_through() -> AsyncIterator[FetcherThrough]:
    built: list[HttpFetcher] = []

    def build(url: str, **settings: Any) -> HttpFetcher:
        settings = {"egress": EgressPolicy(), "resolver": public, **settings}
        settings |= {"proxy": EgressProxy.parse(url), "retry_backoff_seconds": 0.001}
        built.append(HttpFetcher(**settings))
        return built[-1]

    yield build
    for fetcher in built:
        await fetcher.close()


async def failure_of(fetcher: HttpFetcher, url: str) -> Unexaminable:
    with pytest.raises(Unexaminable) as caught:
        await fetcher.fetch(url)
    return caught.value


async def test_a_tunnel_is_asked_for_to_the_address_that_was_judged(
    server: Server, fetcher_through: FetcherThrough
) -> None:
    async with ConnectProxy(server.port) as proxy:
        fetcher = fetcher_through(proxy.url)
        assert await fetcher.fetch("http://images.example/?s3cret=1") == Fetched(BODY)
        assert proxy.tunnels == [f"{PUBLIC}:80"]
        # The proxy learns neither the name nor the URL
        assert "images.example" not in proxy.heads[0] and "s3cret" not in proxy.heads[0]
    assert "Host: images.example" in server.seen[0]


async def test_a_tunnel_to_an_ipv6_address_is_asked_for_in_brackets(
    server: Server, fetcher_through: FetcherThrough
) -> None:
    async with ConnectProxy(server.port) as proxy:
        await fetcher_through(proxy.url).fetch(f"http://[{PUBLIC_IPV6}]/")
        assert proxy.tunnels == [f"[{PUBLIC_IPV6}]:80"]
        assert f"Host: [{PUBLIC_IPV6}]:80" in proxy.heads[0]


async def test_a_tunnel_is_used_again(server: Server, fetcher_through: FetcherThrough) -> None:
    async with ConnectProxy(server.port) as proxy:
        fetcher = fetcher_through(proxy.url)
        for _ in range(3):
            await fetcher.fetch("http://images.example/")
        assert len(proxy.tunnels) == 1


async def test_certificates_are_checked_through_the_tunnel(
    tmp_path: Path, fetcher_through: FetcherThrough
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    certificate = tmp_path / "images.example.pem"
    write_certificate(certificate, "images.example")
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with tls_server(certificate) as server, ConnectProxy(server.port) as proxy:
        server.answer("/", response())
        fetcher = fetcher_through(proxy.url, ssl_context=trusting)
        assert await fetcher.fetch("https://images.example/") == Fetched(BODY)
        assert server.names == ["images.example"]
        failure = await failure_of(fetcher, "https://other.example/")
        assert (failure.code, failure.retryable) == (ErrorCode.TLS_FAILED, False)
        assert proxy.tunnels == [f"{PUBLIC}:443"] * 2


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/", "http://bad.example/", "http://[::1]/", "http://good.example:22/"]
)
async def test_what_may_not_be_reached_is_not_asked_of_the_proxy(
    server: Server, fetcher_through: FetcherThrough, url: str
) -> None:
    async def resolve(name: str) -> Sequence[str]:
        return [PUBLIC, "169.254.169.254"] if name == "bad.example" else [PUBLIC]

    async with ConnectProxy(server.port) as proxy:
        fetcher = fetcher_through(proxy.url, resolver=resolve)
        assert (await failure_of(fetcher, url)).code is ErrorCode.ADDRESS_FORBIDDEN
        server.answer("/moved", redirect(url))
        failure = await failure_of(fetcher, "http://good.example/moved")
        assert failure.code is ErrorCode.ADDRESS_FORBIDDEN
        assert proxy.tunnels == [f"{PUBLIC}:80"]  # for the redirect itself


async def test_user_and_password_are_given_to_the_proxy_and_to_nobody_else(
    server: Server, fetcher_through: FetcherThrough
) -> None:
    async with ConnectProxy(server.port) as proxy:
        url = proxy.url.replace("http://", "http://us%65r:s3cr%3At@")
        await fetcher_through(url).fetch("http://images.example/")
        (head,) = proxy.heads
    expected = base64.b64encode(b"user:s3cr:t").decode()
    assert f"Proxy-Authorization: Basic {expected}\r\n" in head
    assert not any("authorization" in line.lower() for line in server.seen[0])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "status 407"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "status 403"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer like an HTTP proxy"),
        (b"", "does not answer like an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000, "does not answer like an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "before it was asked"),
    ],
    ids=["407", "403", "502", "not HTTP", "nothing", "headers without end", "out of turn"],
)
async def test_a_proxy_that_opens_no_tunnel_is_retryable_and_named(
    fetcher_through: FetcherThrough, answer: bytes, said: str
) -> None:
    async with ConnectProxy(0, answer=answer) as proxy:
        url = proxy.url.replace("http://", "http://user:s3cret@")
        failure = await failure_of(fetcher_through(url), "http://images.example/")
        assert (failure.code, failure.retryable) == (ErrorCode.CONNECT_FAILED, True)
        assert said in failure.detail
        assert proxy.url.removeprefix("http://") in failure.detail
        assert "s3cret" not in str(failure)
        assert len(proxy.tunnels) == 3


async def test_a_proxy_that_cannot_be_reached_is_retryable_and_named(
    fetcher_through: FetcherThrough,
) -> None:
    with socket.socket() as unheard:  # bound, and nobody listens
        unheard.bind((LOOPBACK, 0))
        endpoint = f"{LOOPBACK}:{unheard.getsockname()[1]}"
        failure = await failure_of(fetcher_through(f"http://{endpoint}"), "http://images.example/")
    assert (failure.code, failure.retryable) == (ErrorCode.CONNECT_FAILED, True)
    assert f"the egress proxy at {endpoint} cannot be reached" in failure.detail


async def test_a_proxy_that_says_nothing_is_given_up_and_hung_up_on(
    fetcher_through: FetcherThrough,
) -> None:
    hung_up = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(-1)
        hung_up.set()
        writer.close()

    silent = await asyncio.start_server(say_nothing, LOOPBACK, 0)
    async with silent:
        url = f"http://{LOOPBACK}:{silent.sockets[0].getsockname()[1]}"
        fetcher = fetcher_through(url, connect_timeout_seconds=0.2, attempts=1)
        failure = await failure_of(fetcher, "http://images.example/")
        assert (failure.code, failure.retryable) == (ErrorCode.CONNECT_FAILED, True)
        await hung_up.wait()


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://proxy.internal:3128", "proxy.internal", 3128),
        ("http://10.0.0.1:8080/", "10.0.0.1", 8080),
        ("http://user:pa%40ss@[fd00::1]:3128", "fd00::1", 3128),
        ("HTTP://Proxy:1", "Proxy", 1),
    ],
)
def test_a_proxy_is_read_from_its_url(url: str, host: str, port: int) -> None:
    proxy = EgressProxy.parse(url)
    assert (proxy.host, proxy.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    ["", "proxy:3128", "https://s3cret:3128", "socks5://s3cret:1080", "http://s3cret", "http://:1",
     "http://s3cret:0", "http://s3cret:99999", "http://s3cret:1/path", "http://s3cret@proxy:1",
     "http://user:s3c@ret@proxy:1", "http://s3cret:1\n", "http://s3cret:١"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_read_is_misconfigured_and_not_quoted(url: str) -> None:
    with pytest.raises(Misconfigured, match="http://host:port") as caught:
        EgressProxy.parse(url)
    assert "s3cret" not in str(caught.value)


def test_a_proxy_does_not_show_its_password() -> None:
    assert "cret" not in repr(EgressProxy.parse("http://user:s3cret@proxy:3128"))
