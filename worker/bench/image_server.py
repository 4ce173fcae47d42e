"""An image server in a process of its own: ``python -m worker.bench.image_server``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from worker.bench.photos import marked, photos
from worker.demo.image_server import ImageServer, Reply


def path(number: int) -> str:
    return f"/{number}.jpg"


class _Endless(dict[str, Reply]):
    """Of each number beyond the photos a copy, with other bytes that look the same."""

    def __init__(self, bodies: list[bytes], delay_seconds: float) -> None:
        super().__init__()
        for number, body in enumerate(bodies):
            self[path(number)] = Reply(body, delay_seconds=delay_seconds)

    def get(self, asked: str, default: Any = None) -> Any:
        """Made when it is asked for: thousands would fill the memory."""
        number = int(asked.strip("/").partition(".")[0])
        reply = self[path(number % len(self))]
        return reply if asked in self else replace(reply, body=marked(reply.body, str(number)))


@contextmanager
def image_server(
    count: int = 100, *, kilobytes: int = 50, delay_seconds: float = 0.0
) -> Iterator[int]:
    """Its port. It has ``count`` photos, and copies of them under higher numbers."""
    options = [str(count), str(kilobytes), str(delay_seconds)]
    command = [sys.executable, "-m", "worker.bench.image_server", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("it was started with pipes")
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def _serve(count: int, kilobytes: int, delay_seconds: float) -> None:
    server = ImageServer({})
    server.replies = _Endless(photos(count, kilobytes), delay_seconds)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    await server.serve(lambda: print(server.port, flush=True), stop)  # noqa: T201 - for who asks


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
