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
from contextlib import suppress

import httpx

from worker import telemetry
from worker.connections import ConnectionPool, dial
from worker.egress import EgressPolicy, PinnedBackend, Resolver, Target, judge_url, resolve
from worker.errors import ErrorCode, Stage, Transient, Unexaminable
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


class HttpFetcher:
    """Downloads over http and https; a ``types.Fetcher``.

    ``total_timeout_seconds`` bounds a whole ``fetch``: waiting for a connection, all redirects and
    all retries. ``max_bytes`` bounds a body, before and after it is decompressed. ``attempts``
    counts the first one too; pauses between them are ``retry_backoff_seconds`` times 1, 2, 4…,
    each times a random factor from 0.5 to 1.5. ``ssl_context`` replaces the usual certificate
    authorities (certifi's).
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        total_timeout_seconds: float = 15.0,
        connect_timeout_seconds: float = 3.0,
        max_bytes: int = 20 * 2**20,
        max_redirects: int = 3,
        attempts: int = 3,
        retry_backoff_seconds: float = 0.2,
        max_connections: int = 64,
        keepalive_seconds: float = 15.0,
        user_agent: str = "imagewarden",
        resolver: Resolver = resolve,
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
        # Only connecting has a limit of its own; the deadline covers everything else.
        self._extensions = {"timeout": {"connect": connect_timeout_seconds}}
        verify = ssl_context or httpx.create_ssl_context(trust_env=False)
        self._transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False)
        # httpx has no parameter for the network backend, so the transport's pool is replaced.
        self._transport._pool = ConnectionPool(
            network_backend=PinnedBackend(egress, dial=dial, resolver=resolver),
            ssl_context=verify,
            max_connections=max_connections,
            keepalive_seconds=keepalive_seconds,
        )

    async def fetch(self, url: str, *, etag: str | None = None) -> Fetched | NotModified:
        """Download ``url``; with ``etag``, only if it is no longer what that names.

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
                        if attempt == self._attempts or clock() + pause >= deadline:
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

    async def _follow(self, target: Target, etag: str | None) -> Fetched | NotModified:
        """One attempt: the URL, and where it redirects to."""
        start = target
        for _ in range(self._max_redirects + 1):
            try:
                answer = await self._request(target, etag)
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
        headers = self._headers
        if etag is not None and _ETAG.fullmatch(etag):
            headers = headers | {"If-None-Match": etag}
        request = httpx.Request("GET", target.url, headers=headers, extensions=self._extensions)
        response = await self._transport.handle_async_request(request)
        try:
            status = response.status_code
            if 200 <= status < 300 and status != 206:  # nobody asked for a part
                return await self._receive(response, target)
            await _drain(response)
            if status in _REDIRECTS and "Location" in response.headers:
                return judge_url(response.headers["Location"], self._egress, base=target)
            if status == 304 and "If-None-Match" in headers:
                return NotModified()
            raise _refused(status, target)
        finally:
            await response.aclose()

    async def _receive(self, response: httpx.Response, target: Target) -> Fetched:
        too_many = Unexaminable(
            ErrorCode.TOO_MANY_BYTES, Stage.FETCH, f"{target} has more than {self._max_bytes} bytes"
        )
        # h11 lets no Content-Length through that is not a number of at most 20 digits
        if int(response.headers.get("Content-Length", 0)) > self._max_bytes:
            raise too_many
        coding = response.headers.get("Content-Encoding", "identity").lower()
        inflate = None if coding == "identity" else _Inflate(coding, target)
        body = bytearray()
        received = 0
        try:
            async for chunk in response.aiter_raw():
                received += len(chunk)
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
            raise self._failed(f"is encoded as {coding[:20]!r} although identity was asked for")
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


def _refused(status: int, target: Target) -> Transient | Unexaminable:
    detail = f"{target} answered with status {status}"
    if status in _TRY_AGAIN:
        return Transient(ErrorCode.HTTP_CLIENT_ERROR, Stage.FETCH, detail)
    if 400 <= status < 500:
        return Unexaminable(ErrorCode.HTTP_CLIENT_ERROR, Stage.FETCH, detail)
    if 500 <= status < 600:
        return Transient(ErrorCode.HTTP_SERVER_ERROR, Stage.FETCH, detail)
    return Unexaminable(ErrorCode.FETCH_FAILED, Stage.FETCH, detail)
