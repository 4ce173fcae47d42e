"""Downloads: one deadline for everything, a cap on bytes, and every hop judged anew.

httpx's transport is used without ``httpx.AsyncClient`` around it: what a client adds (redirects of
its own, cookies, proxies and credentials from the environment, a log line with the query string)
is what must not happen here, and it costs 0.1 ms of CPU a request, as much as half a download.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import zlib
from collections.abc import Callable
from contextlib import suppress

import httpx

from worker import telemetry
from worker.connections import ConnectionPool, dial
from worker.egress import EgressPolicy, PinnedBackend, Resolver, Target, judge_url
from worker.errors import ErrorCode, Misconfigured, Stage, Transient, Unexaminable
from worker.proxy import EgressProxy
from worker.resolver import SystemResolver
from worker.types import Fetched, NotModified

# Query strings are credentials. httpx logs whole URLs at INFO and httpcore headers (Location among
# them) at DEBUG, so neither may log below WARNING, whatever level the service logs at.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
# RFC 9110, section 8.8.3, without what is not ASCII. Others are neither kept nor sent.
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,512}"')
# An unwanted body (of a redirect, of a 404) up to here is read, if it is there already: cheaper
# than a new connection.
_DRAINED_BYTES = 64 * 1024
_DRAIN_SECONDS = 0.05
# Far more than any server sends. Their bytes are limited too: h11 gives up a head at 100 KiB.
_MAX_HEADERS = 200
# A body in chunks of a byte each costs a hundred times the CPU of a usual one. Servers send
# kilobytes at a time; who sends less than this on the average is given up after so many pieces.
_SMALLEST_PIECE_BYTES = 64
_SMALL_PIECES = 1000
# In seconds; the other form, a date, is left alone, as it needs two clocks that agree.
_RETRY_AFTER = re.compile(r"[0-9]{1,6}", re.A)


class HttpFetcher:
    """Downloads over http and https; a ``seams.Fetcher``.

    ``total_timeout_seconds`` bounds a whole ``fetch``: waiting for a connection, all redirects and
    all retries. Within it an attempt is given up when connecting takes ``connect_timeout_seconds``
    or nothing arrives for ``read_timeout_seconds``, so that a stalled one leaves time for another.
    ``max_bytes`` bounds a body, before and after it is decompressed. ``attempts`` counts the first
    one too; pauses between them are ``retry_backoff_seconds`` times 1, 2, 4…, each times a random
    factor from 0.5 to 1.5, or what the server asks for in ``Retry-After``. ``proxy`` is the HTTP
    proxy that everything goes through, judged all the same. ``ssl_context`` says whose
    certificates are believed, ``tls_context`` makes one. The default ``resolver`` is the system's.
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        total_timeout_seconds: float = 15.0,
        connect_timeout_seconds: float = 3.0,
        read_timeout_seconds: float = 5.0,
        max_bytes: int = 20 * 2**20,
        max_redirects: int = 3,
        attempts: int = 3,
        retry_backoff_seconds: float = 0.2,
        max_connections: int = 64,
        keepalive_seconds: float = 15.0,
        user_agent: str = "imagewarden",
        proxy: EgressProxy | None = None,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._egress = egress
        self._total_timeout_seconds = total_timeout_seconds
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._attempts = attempts
        self._retry_backoff_seconds = retry_backoff_seconds
        self._headers = {
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
        }
        self._read_timeout_seconds = read_timeout_seconds
        timeouts = {"connect": connect_timeout_seconds, "read": read_timeout_seconds}
        self._extensions = {"timeout": timeouts}
        self._system_resolver = SystemResolver()
        verify = ssl_context or tls_context()
        self._transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False)
        # httpx has no parameter for the network backend, so the transport's pool is replaced.
        self._transport._pool = ConnectionPool(
            network_backend=PinnedBackend(
                egress,
                dial=proxy.dial if proxy else dial,
                resolver=resolver or self._system_resolver,
            ),
            ssl_context=verify,
            max_connections=max_connections,
            keepalive_seconds=keepalive_seconds,
        )

    async def fetch(
        self,
        url: str,
        *,
        etag: str | None = None,
        worth_retrying: Callable[[], bool] = lambda: True,
    ) -> Fetched | NotModified:
        """Download ``url``; with ``etag``, only if it is no longer what that names. Where
        ``worth_retrying`` says no, a failed attempt was the last one.

        Raises ``Unexaminable``. Its detail holds no query string and no credential.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._total_timeout_seconds
        target = judge_url(url, self._egress)
        attempt = 0
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    attempt += 1
                    telemetry.FETCH_ATTEMPTS.inc()
                    try:
                        return await self._follow(target, etag)
                    except Transient as failure:
                        pause = self._retry_backoff_seconds * 2 ** (attempt - 1)
                        pause *= random.uniform(0.5, 1.5)
                        if isinstance(failure, _TryLater):
                            pause = max(pause, failure.seconds)
                        another = attempt < self._attempts and clock() + pause < deadline
                        if not (another and worth_retrying()):
                            raise failure.exhausted(attempt) from None
                    await asyncio.sleep(pause)
        except TimeoutError:
            detail = f"{target} took longer than {self._total_timeout_seconds:g} s"
            raise Unexaminable(
                ErrorCode.FETCH_TIMEOUT, Stage.FETCH, detail, retryable=True, attempts=attempt
            ) from None
        except Unexaminable as failure:
            failure.attempts = attempt
            raise

    async def close(self) -> None:
        await self._transport.aclose()
        await self._system_resolver.close()

    async def _follow(self, target: Target, etag: str | None) -> Fetched | NotModified:
        """One attempt: the URL, and where it redirects to."""
        start = target
        for _ in range(self._max_redirects + 1):
            try:
                answer = await self._request(target, etag)
            except httpx.ReadTimeout:
                detail = f"{target} sent nothing for {self._read_timeout_seconds:g} s"
                raise Transient(ErrorCode.FETCH_TIMEOUT, Stage.FETCH, detail) from None
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                # The type only: the message may quote a header.
                detail = f"{target} broke off ({type(error).__name__})"
                raise Transient(ErrorCode.FETCH_FAILED, Stage.FETCH, detail) from None
            except httpx.LocalProtocolError:
                detail = f"{target} cannot be written as an HTTP request"
                raise Unexaminable(ErrorCode.URL_INVALID, Stage.FETCH, detail) from None
            if not isinstance(answer, Target):
                return answer
            target = answer
        detail = f"{start} redirects more than {self._max_redirects} times"
        raise Unexaminable(ErrorCode.TOO_MANY_REDIRECTS, Stage.FETCH, detail)

    async def _request(self, target: Target, etag: str | None) -> Fetched | NotModified | Target:
        """One hop: a body, or where it is said to be."""
        # Left to itself, httpx reads the host back from Punycode, and fails where IDNA has rules
        headers = {"Host": target.url.netloc.decode("ascii"), **self._headers}
        if etag is not None and _ETAG.fullmatch(etag):
            headers["If-None-Match"] = etag
        request = httpx.Request("GET", target.url, headers=headers, extensions=self._extensions)
        response = await self._transport.handle_async_request(request)
        try:
            status = response.status_code
            if len(response.headers.raw) > _MAX_HEADERS:
                detail = f"{target} answered with more than {_MAX_HEADERS} headers"
                raise Unexaminable(ErrorCode.FETCH_FAILED, Stage.FETCH, detail)
            if 200 <= status < 300 and status != 206:  # nobody asked for a part
                return await self._receive(response, target)
            await _drain(response)
            if status in _REDIRECTS and "Location" in response.headers:
                return judge_url(response.headers["Location"], self._egress, base=target)
            if status == 304 and "If-None-Match" in headers:
                return NotModified()
            raise _refused(response, target)
        finally:
            await response.aclose()

    async def _receive(self, response: httpx.Response, target: Target) -> Fetched:
        too_many = Unexaminable(
            ErrorCode.TOO_MANY_BYTES, Stage.FETCH, f"{target} has more than {self._max_bytes} bytes"
        )
        # h11 lets no Content-Length through that is not a number of at most 20 digits
        if int(response.headers.get("Content-Length", 0)) > self._max_bytes:
            raise too_many
        coding = response.headers.get("Content-Encoding", "").lower() or "identity"
        inflate = None if coding == "identity" else _Inflate(coding, target)
        body = bytearray()
        received = pieces = 0
        try:
            async for chunk in response.aiter_raw():
                received += len(chunk)
                pieces += 1
                if pieces > _SMALL_PIECES and received < pieces * _SMALLEST_PIECE_BYTES:
                    detail = f"{target} sends its body in pieces of a few bytes"
                    raise Unexaminable(ErrorCode.FETCH_FAILED, Stage.FETCH, detail)
                # Of a bomb, one byte more than allowed is unpacked: enough to tell.
                room = self._max_bytes - len(body) + 1
                body += inflate(chunk, room) if inflate else chunk
                if max(received, len(body)) > self._max_bytes:
                    raise too_many
        finally:
            telemetry.FETCHED_BYTES.inc(received)
        if inflate:
            inflate.finish()
        if not body:
            raise Unexaminable(ErrorCode.EMPTY_BODY, Stage.FETCH, f"{target} has an empty body")
        etag = response.headers.get("ETag", "")
        return Fetched(bytes(body), etag if _ETAG.fullmatch(etag) else None)


class _Inflate:
    """Unpacks what a server compressed although it was asked not to, never beyond a given room."""

    def __init__(self, coding: str, target: Target) -> None:
        self._target = target
        if coding not in ("gzip", "x-gzip", "deflate"):
            # not quoted: a server may echo what it was asked, which may be a credential
            raise self._failed("is encoded in a way that was not asked for")
        self._stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # gzip or zlib, by its header

    def __call__(self, chunk: bytes, room: int) -> bytes:
        """At most ``room`` bytes; the caller gives up when it is used up."""
        try:
            return self._stream.decompress(chunk, room)
        except zlib.error:
            raise self._failed("is damaged where it is compressed") from None

    def finish(self) -> None:
        # What follows the end would be shown by some clients and judged by nobody.
        if not self._stream.eof or self._stream.unused_data:
            raise self._failed("is damaged where it is compressed")

    def _failed(self, what: str) -> Unexaminable:
        return Unexaminable(ErrorCode.FETCH_FAILED, Stage.FETCH, f"{self._target} {what}")


async def _drain(response: httpx.Response) -> None:
    """Read a small body that nobody wants, so that its connection can be used again."""
    if int(response.headers.get("Content-Length", _DRAINED_BYTES)) < _DRAINED_BYTES:
        with suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in response.aiter_raw():
                    pass


class _TryLater(Transient):
    """The server says after how many ``seconds`` to try again."""

    def __init__(self, code: ErrorCode, detail: str, seconds: float) -> None:
        super().__init__(code, Stage.FETCH, detail)
        self.seconds = seconds


def _refused(response: httpx.Response, target: Target) -> Transient | Unexaminable:
    status = response.status_code
    detail = f"{target} answered with status {status}"
    if status in _TRY_AGAIN or 500 <= status < 600:
        code = ErrorCode.HTTP_CLIENT_ERROR if status < 500 else ErrorCode.HTTP_SERVER_ERROR
        asked = response.headers.get("Retry-After", "")
        return _TryLater(code, detail, float(asked) if _RETRY_AFTER.fullmatch(asked) else 0.0)
    if 400 <= status < 500:
        return Unexaminable(ErrorCode.HTTP_CLIENT_ERROR, Stage.FETCH, detail)
    return Unexaminable(ErrorCode.FETCH_FAILED, Stage.FETCH, detail)


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Believes the usual certificate authorities (certifi's), and those in ``ca_file`` (PEM).

    Raises ``Misconfigured`` when that cannot be read.
    """
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # SSLError is one
            raise Misconfigured(
                f"no certificate authority can be read from {ca_file}: {error.strerror or error}; "
                "it must be a file with PEM certificates"
            ) from None
    return context
