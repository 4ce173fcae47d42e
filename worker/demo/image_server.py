"""A small HTTP server of images, good and bad, that counts what is asked of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server says to one path, after ``delay_seconds``."""

    body: bytes = b""
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0


class ImageServer:
    """Serves ``replies`` by path, with ETags and keep-alive. ``hits`` counts answers by path."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self.replies = dict(replies)
        self.hits: Counter[str] = Counter()
        self.port = 0

    async def serve(
        self,
        started: Callable[[], None],
        stop: asyncio.Event,
        listener: socket.socket | None = None,
    ) -> None:
        """Serves until ``stop``, by itself on a free loopback port; calls ``started`` once ``port``
        is set."""
        listener = listener or socket.create_server(("127.0.0.1", 0))
        server = await asyncio.start_server(self._converse, sock=listener)
        self.port = server.sockets[0].getsockname()[1]
        started()
        try:
            await stop.wait()
        finally:
            server.close()  # no wait_closed(): since 3.12 it waits until each client hangs up

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.decode("latin-1")))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would print what a connection's task raises
        finally:
            writer.close()

    async def _answer(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        path = request.split(" ")[1].partition("?")[0]
        self.hits[path] += 1
        reply = self.replies.get(path, Reply(b"nothing here\n", HTTPStatus.NOT_FOUND))
        await asyncio.sleep(reply.delay_seconds)
        etag = f'"{zlib.crc32(reply.body):08x}"'
        asked = {line.lower() for line in lines}
        if reply.status is HTTPStatus.OK and f"if-none-match: {etag}" in asked:
            return f"HTTP/1.1 304 Not Modified\r\nETag: {etag}\r\n\r\n".encode()
        headers = {"Content-Length": str(len(reply.body)), "ETag": etag, **reply.headers}
        told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {reply.status.value} {reply.status.phrase}\r\n"
        return (start + told + "\r\n").encode() + reply.body


@contextmanager
def serving(
    replies: Mapping[str, Reply], *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[ImageServer]:
    """The server in a thread of its own, so that nothing its caller does slows it down. Raises
    ``OSError`` where it cannot listen there; port 0 is a free one."""
    listener = socket.create_server((host, port))
    server = ImageServer(replies)
    started = threading.Event()
    stop = asyncio.Event()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(
            target=runner.run, args=[server.serve(started.set, stop, listener)], name="image-server"
        )
        thread.start()
        started.wait()
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
