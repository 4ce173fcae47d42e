"""HTTP connections on plain asyncio: a socket as httpcore wants it, and a pool of them.

httpcore's own pool is not used, for two reasons that were measured. It loses slots for good when
a request is cancelled at the wrong moment (every deadline is a cancellation): a few thousand of
them leave a pool in which nothing can be requested any more. And it scans all of its connections,
with a system call each, at every request.
"""

# ruff: noqa: ASYNC109 (httpcore hands its timeouts over as parameters)

from __future__ import annotations

import asyncio
import select
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpcore

from worker.errors import ErrorCode, Stage, Transient, Unexaminable

# Received and not yet read; beyond it the socket is not read, so the sender has to wait.
_HIGH_WATER_BYTES = 256 * 1024

_OriginKey = tuple[bytes, bytes, int]


class SocketStream(asyncio.Protocol):
    """A connected socket: an ``httpcore.AsyncNetworkStream``, for one reader at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._received_bytes += len(data)
        if self._received_bytes > _HIGH_WATER_BYTES:
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> None:
        self._ended = True
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = exc
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # what httpcore calls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At least one byte, or none at the end. Raises ``httpcore.ReadError``."""
        if self._received:
            # What is there already may take long to parse, as a stranger likes: others first
            await asyncio.sleep(0)
        elif not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._reader
            except TimeoutError as error:
                raise httpcore.ReadTimeout(f"nothing was received for {timeout} s") from error
            finally:
                self._reader = None
        if not self._received:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error)) from self._error
            return b""
        data = self._received.popleft()
        if len(data) > max_bytes:
            self._received.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        was_full = self._received_bytes > _HIGH_WATER_BYTES
        self._received_bytes -= len(data)
        if was_full and self._received_bytes <= _HIGH_WATER_BYTES and not self._ended:
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Requests are small and have no body, so they are handed over and not waited for."""
        if self._ended:
            raise httpcore.WriteError("the connection is closed")
        self._transport.write(buffer)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> SocketStream:
        """Raises ``Unexaminable`` for a certificate that does not hold, else ``Transient``."""
        try:
            async with asyncio.timeout(timeout):
                transport = await asyncio.get_running_loop().start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except ssl.SSLCertVerificationError as error:
            detail = f"the certificate of {server_hostname} is refused: {error.verify_message}"
            raise Unexaminable(ErrorCode.TLS_FAILED, Stage.FETCH, detail) from None
        except OSError as error:  # SSLError and TimeoutError among them
            reason = error.strerror or "no answer in time"
            detail = f"no TLS connection to {server_hostname}: {reason}"
            raise Transient(ErrorCode.TLS_FAILED, Stage.FETCH, detail) from None
        assert transport is not None
        self._transport = transport
        return self

    async def aclose(self) -> None:
        # Never suspends, so that no cancellation can come in between. Nothing is left to be sent.
        self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of idle connections: does it have to be dropped?
            return self._ended or bool(self._received) or self._has_arrived()
        return self._transport.get_extra_info(info)

    def _has_arrived(self) -> bool:
        """Whether there is something that the event loop has not heard of yet."""
        socket = self._transport.get_extra_info("socket")
        if socket is None or socket.fileno() < 0:  # TLS that was reset: we are told a turn later
            return True
        arrived = select.poll()
        arrived.register(socket, select.POLLIN)
        return bool(arrived.poll(0))


async def dial(address: str, port: int) -> SocketStream:
    """Connect to a literal address. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(SocketStream, address, port)
    return stream


class ConnectionPool:
    """Keeps connections for the next request to the same origin: what ``httpx.AsyncHTTPTransport``
    needs of an ``httpcore.AsyncConnectionPool``.

    At most ``max_connections`` are in use, further requests wait; at most as many again are idle,
    each for at most ``keepalive_seconds``. A connection is always in exactly one place: in the
    hands of one response, idle, or closed; no cancellation can lose it.
    """

    def __init__(
        self,
        *,
        network_backend: object,
        ssl_context: ssl.SSLContext,
        max_connections: int,
        keepalive_seconds: float,
    ) -> None:
        self._network_backend = network_backend
        self._ssl_context = ssl_context
        self._max_idle = max_connections
        self._keepalive_seconds = keepalive_seconds
        self._slots = asyncio.Semaphore(max_connections)
        # Origins in the order of their last use; of each, connections in the order of theirs.
        self._idle: dict[_OriginKey, list[httpcore.AsyncHTTPConnection]] = {}
        self._idle_count = 0
        self._closed = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        await self._slots.acquire()
        connection = None
        try:
            connection = await self._take_idle(request.url.origin) or httpcore.AsyncHTTPConnection(
                request.url.origin,
                ssl_context=self._ssl_context,
                keepalive_expiry=self._keepalive_seconds,
                network_backend=self._network_backend,
            )
            response = await connection.handle_async_request(request)
        except BaseException:
            if connection is not None:
                await connection.aclose()
            self._slots.release()
            raise
        response.stream = _Body(self, connection, request.url.origin, response.stream)
        return response

    async def give_back(
        self, connection: httpcore.AsyncHTTPConnection, origin: httpcore.Origin
    ) -> None:
        """End of a response: keep its connection if it is fit for another request."""
        self._slots.release()
        if self._closed or not connection.is_idle() or _has_more(connection):
            await connection.aclose()
            return
        key = _key(origin)
        self._idle[key] = [*self._idle.pop(key, ()), connection]
        self._idle_count += 1
        if self._idle_count > self._max_idle:
            longest_unused = next(iter(self._idle))
            await self._pop_idle(longest_unused, 0).aclose()

    async def aclose(self) -> None:
        self._closed = True
        for key in list(self._idle):
            while key in self._idle:
                await self._pop_idle(key, 0).aclose()

    async def _take_idle(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection | None:
        key = _key(origin)
        while key in self._idle:
            connection = self._pop_idle(key, -1)
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    def _pop_idle(self, key: _OriginKey, index: int) -> httpcore.AsyncHTTPConnection:
        connection = self._idle[key].pop(index)
        self._idle_count -= 1
        if not self._idle[key]:
            del self._idle[key]
        return connection


class _Body:
    """The body of one response; closing it gives its connection back."""

    def __init__(
        self,
        pool: ConnectionPool,
        connection: httpcore.AsyncHTTPConnection,
        origin: httpcore.Origin,
        stream: Any,
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._origin = origin
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._pool.give_back(self._connection, self._origin)


def _has_more(connection: httpcore.AsyncHTTPConnection) -> bool:
    """Whether bytes came behind the answer. Nobody asked for them, and httpcore, which does not
    tell, would read them as the answer to the next request: another image's."""
    return bool(connection._connection._h11_state.trailing_data[0])


def _key(origin: httpcore.Origin) -> _OriginKey:
    return origin.scheme, origin.host, origin.port
