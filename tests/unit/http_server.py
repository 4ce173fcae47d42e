"""An HTTP server on loopback that says exactly what a test wants it to say."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
BODY = bytes(range(256)) * 200


class Server:
    """Serves what ``routes`` says: bytes to be written as they are, or a coroutine that writes.

    A path with several answers gives one after the other, the last one for ever. ``seen`` holds
    the requests as they came in, each with the lines of its head.
    """

    def __init__(self) -> None:
        self.routes: dict[str, list[Answer]] = {}
        self.seen: list[list[str]] = []
        self.connections = 0
        self.names: list[str | None] = []  # of TLS connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, ssl=context)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, path: str = "/", *, host: str = LOOPBACK, scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def answer(self, path: str, *answers: Answer) -> str:
        self.routes[path] = list(answers)
        return self.url(path)

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.seen.append(head.split("\r\n"))
                answers = self.routes[head.split(" ")[1].partition("?")[0]]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                    if b"\r\nConnection: close\r\n" in answer:
                        break
                else:
                    await answer(writer)
        writer.close()


Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = BODY, status: str = "200 OK", **headers: str) -> bytes:
    """A response with a Content-Length, unless ``headers`` say something else."""
    headers = {"Content_Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(b"", status, Location=location)


def unframed(body: bytes, **headers: str) -> bytes:
    """A response whose body ends with its connection."""
    framed = response(b"", **headers, Connection="close")
    return framed.replace(b"Content-Length: 0\r\n", b"") + body


def write_certificate(file: Path, name: str) -> None:
    """Certificate and key of ``name``, in one file."""
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    files = ["-keyout", str(file.with_suffix(".key")), "-out", str(file)]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".key").read_bytes())


@asynccontextmanager
async def tls_server(certificate: Path) -> AsyncIterator[Server]:
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _, name, __: server.names.append(name)
    await server.start(context)
    try:
        yield server
    finally:
        await server.close()
