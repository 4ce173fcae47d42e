"""An image server that refuses, stalls and breaks off when it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Self

from worker.demo.image_server import ImageServer, Reply


class Failing(Enum):
    REFUSING = auto()  #: connections are refused, and those that are there are cut
    STALLING = auto()  #: requests are taken and not answered, until it is over
    DROPPING = auto()  #: half of an answer, and the connection is closed


class UnreliableImages(ImageServer):
    """Use as ``async with UnreliableImages(replies) as images``, and ``async with
    images.failing(how)`` within. From one event loop."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        super().__init__(replies)
        self._how: Failing | None = None
        self._over = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._bind()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hang_up()
        self._socket.close()

    @asynccontextmanager
    async def failing(self, how: Failing) -> AsyncIterator[None]:
        self._how = how
        if how is Failing.REFUSING:
            self._hang_up()
            self._bind()  # nobody else may take the port, and nobody listens on it
        try:
            yield
        finally:
            self._how = None
            self._over.set()
            self._over = asyncio.Event()
            if how is Failing.REFUSING:
                await self._listen()

    def _bind(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._converse, sock=self._socket)

    def _hang_up(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answer = await self._answer(head.decode("latin-1"))
                if self._how is Failing.STALLING:
                    await self._over.wait()
                if self._how is Failing.DROPPING:
                    writer.write(answer[: len(answer) // 2])
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the run ends; asyncio would print what a connection's task raises
        finally:
            self._connections.discard(writer)
            writer.close()
