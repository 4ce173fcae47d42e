"""The wall from outside: real downloads, a hostile name server, and a canary behind the wall."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.connect_proxy import ConnectProxy
from tests.unit.url_corpus import (
    HOSTILE_LOCATIONS,
    HOSTILE_URLS,
    LEGAL_URLS,
    LOOPBACK_HOSTS,
    SPECIAL_HOSTS,
)
from worker.egress import EgressPolicy, Resolver, Target, judge_url
from worker.errors import ErrorCode, Unexaminable
from worker.fetch import HttpFetcher
from worker.proxy import EgressProxy
from worker.types import Fetched

CANARY, FRONT = "127.0.0.1", "127.0.0.2"
PUBLIC = "93.184.215.14"
REFUSED = (ErrorCode.URL_INVALID, ErrorCode.ADDRESS_FORBIDDEN)
BODY = b"an image"
# Trusts nobody; quicker to make than the usual one, and no test here speaks TLS
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Scene:
    """Two servers at the same port. The front, at another loopback address, may be reached, and
    redirects to ``location`` while there is one; the canary may not, and counts ``hits``."""

    def __init__(self) -> None:
        self.port = 0
        self.location: bytes | None = None
        self.requests: list[str] = []
        self.hits = 0
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        canary = await asyncio.start_server(self._count, CANARY, 0)
        self._servers.append(canary)
        self.port = canary.sockets[0].getsockname()[1]
        try:
            front = await asyncio.start_server(self._answer, FRONT, self.port)
        except OSError:
            await self.close()
            pytest.skip(f"this system has no second loopback address {FRONT}")
        self._servers.append(front)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    @property
    def policy(self) -> EgressPolicy:
        return EgressPolicy(ports=[80, 443, self.port], allow=[f"{FRONT}:{self.port}"])

    def fetcher(self, resolver: Resolver, *, proxy: str | None = None) -> HttpFetcher:
        return HttpFetcher(
            egress=self.policy,
            resolver=resolver,
            proxy=EgressProxy.parse(proxy) if proxy else None,
            attempts=1,
            ssl_context=NO_TLS,
        )

    async def _count(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary")
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head.decode())
            if self.location is None:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(BODY))
            elif b"GET /start " in head:
                writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + self.location)
                writer.write(b"\r\nContent-Length: 8\r\n")
            else:  # relative after all
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n")
            writer.write(b"Connection: close\r\n\r\n" + BODY)
        writer.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.start()
    yield scene
    await scene.close()


async def hostile_resolver(name: str) -> Sequence[str]:
    """Reads numbers as laxly as C does, and has the canary's address for everything else."""
    try:
        return [socket.inet_ntoa(socket.inet_aton(name))]
    except OSError:
        return [CANARY]


async def outcome_of(fetcher: HttpFetcher, url: str) -> ErrorCode | Fetched:
    try:
        fetched = await fetcher.fetch(url)
    except Unexaminable as failure:
        return failure.code
    assert isinstance(fetched, Fetched)
    return fetched


async def test_the_canary_is_hit_when_it_is_let_through(scene: Scene) -> None:
    # Or all the counts of nothing would mean nothing
    fetcher = HttpFetcher(
        egress=EgressPolicy(allow=[f"{CANARY}:{scene.port}"]),
        resolver=hostile_resolver,
        ssl_context=NO_TLS,
    )
    await outcome_of(fetcher, f"http://hostile.example:{scene.port}/")
    await fetcher.close()
    assert scene.hits == 1


@pytest.mark.parametrize("through_a_proxy", [False, True], ids=["directly", "through a proxy"])
async def test_no_hostile_url_is_let_through(scene: Scene, through_a_proxy: bool) -> None:
    async with ConnectProxy(scene.port) as proxy:
        fetcher = scene.fetcher(hostile_resolver, proxy=proxy.url if through_a_proxy else None)
        urls = {url: url.format(port=scene.port) for url in HOSTILE_URLS}
        outcomes = {url: await outcome_of(fetcher, written) for url, written in urls.items()}
        await fetcher.close()
        assert proxy.tunnels == []
    assert {url: how for url, how in outcomes.items() if how not in REFUSED} == {}
    assert (scene.hits, scene.requests) == (0, [])
    assert len(urls) >= 400
    print(f"{len(urls)} hostile URLs, let through: 0", Counter(outcomes.values()))


async def test_no_hostile_redirect_is_followed_to_its_end(scene: Scene) -> None:
    fetcher = scene.fetcher(hostile_resolver)
    # What ends a header line ends the header, whatever it was meant to be
    locations = {
        location
        for location in (*HOSTILE_URLS, *HOSTILE_LOCATIONS)
        if not set(location) & set("\r\n\0")
    }
    relative = []
    for location in sorted(locations):
        written = location.format(port=scene.port).encode(errors="surrogatepass")
        scene.location = written
        outcome = await outcome_of(fetcher, f"http://{FRONT}:{scene.port}/start")
        if outcome not in REFUSED:  # read against its base, it named the front itself
            assert outcome in (
                ErrorCode.HTTP_CLIENT_ERROR,
                ErrorCode.TOO_MANY_REDIRECTS,
                ErrorCode.FETCH_FAILED,
            )
            relative.append(location)
    await fetcher.close()
    assert scene.hits == 0
    assert len(locations) - len(relative) >= 400
    print(f"{len(locations)} hostile redirects, let through: 0, relative: {len(relative)}")


@pytest.mark.parametrize("good_answers", range(4))
@pytest.mark.parametrize("bad", [[CANARY], [FRONT, CANARY], [CANARY, FRONT], [FRONT] * 9 + ["::1"]])
async def test_a_name_that_turns_bad_is_refused_when_it_does(
    scene: Scene, good_answers: int, bad: list[str]
) -> None:
    asked = 0

    async def rebinding(name: str) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return [FRONT] if asked <= good_answers else bad

    scene.location = f"http://rebinding.example:{scene.port}/start".encode()
    fetcher = scene.fetcher(rebinding)
    outcome = await outcome_of(fetcher, f"http://rebinding.example:{scene.port}/start")
    await fetcher.close()
    assert outcome is ErrorCode.ADDRESS_FORBIDDEN
    assert asked == good_answers + 1  # one look-up for each connection, and it was the judged one
    assert (len(scene.requests), scene.hits) == (good_answers, 0)


@pytest.mark.parametrize("bad", [host.strip("[]") for host in SPECIAL_HOSTS])
async def test_a_name_with_one_bad_address_among_good_ones_is_refused(
    scene: Scene, bad: str
) -> None:
    try:
        address = ip_address(bad)
    except ValueError:  # a spelling that only C reads
        address = ip_address(socket.inet_aton(bad))

    async def mixed(name: str) -> Sequence[str]:
        return [FRONT, str(address), FRONT]

    fetcher = scene.fetcher(mixed)
    outcome = await outcome_of(fetcher, f"http://mixed.example:{scene.port}/")
    await fetcher.close()
    assert outcome is ErrorCode.ADDRESS_FORBIDDEN
    assert scene.requests == []


async def test_no_odd_but_legal_url_is_refused(scene: Scene) -> None:
    async def public(name: str) -> Sequence[str]:
        return [PUBLIC]

    for url in LEGAL_URLS:
        judge_url(url, EgressPolicy())
    plain = [url for url in LEGAL_URLS if not url.startswith("https:")]
    async with ConnectProxy(scene.port, host=FRONT) as proxy:
        fetcher = scene.fetcher(public, proxy=proxy.url)
        outcomes = {url: await outcome_of(fetcher, url) for url in plain}
        await fetcher.close()
    refused = {url: how for url, how in outcomes.items() if how != Fetched(BODY)}
    assert refused == {}
    assert len(scene.requests) == len(plain) >= 100
    print(f"{len(LEGAL_URLS)} odd but legal URLs, refused: {len(refused)}")


# ---------------------------------------------------------------- fuzzing

_urls = st.sampled_from([url.format(port=80) for url in (*HOSTILE_URLS, *HOSTILE_LOCATIONS)])
_urls |= st.sampled_from(LEGAL_URLS)
_pieces = st.sampled_from([*LOOPBACK_HOSTS, *SPECIAL_HOSTS])
_pieces |= st.sampled_from(
    ["http://", "https://", "//", ":80", "%00", "%2e", "xn--", "0x", "..", "example.com"]
)
_pieces |= st.sampled_from("/\\@:.。%[]?#0ß١\t\n \0\u200d\u2028")


@st.composite
def mutated_urls(draw: st.DrawFn) -> str:
    """A URL of the corpus with some pieces put in, cut out, or written over."""
    url = draw(_urls | st.lists(_pieces, max_size=6).map("".join))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(url)))
        end = min(len(url), start + draw(st.integers(0, 5)))
        url = url[:start] + draw(_pieces | st.text(max_size=2) | st.just("")) + url[end:]
    return url


_BASE = judge_url("https://example.com/a/b?c", EgressPolicy())


@settings(max_examples=1500, deadline=None)
@given(mutated_urls(), st.sampled_from([None, _BASE]))
@example("http://.//x", None)
@example("http://xn--/", None)
@example("http://[::1].:80", None)
def test_whatever_is_judged_is_refused_or_names_a_public_address(
    text: str, base: Target | None
) -> None:
    try:
        target = judge_url(text, EgressPolicy(), base=base)
    except Unexaminable as refused:
        assert refused.code in REFUSED
        return
    assert target.port in (80, 443)
    # What is requested is read by the same parser, to the same end, however often it is written out
    again = judge_url(str(target.url), EgressPolicy())
    assert (again.url, again.host, again.port) == (target.url, target.host, target.port)
    assert target.url.raw_host.decode() == target.host
    assert not target.url.userinfo
    try:
        address = ip_address(target.host)
    except ValueError:
        with pytest.raises(OSError):  # not even the laxest reader takes it for an address
            socket.inet_aton(target.host)
    else:
        assert address.is_global and not address.is_multicast
