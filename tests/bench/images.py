"""Distinct JPEGs, and a server of them in a process of its own.

``python -m tests.bench.images COUNT DELAY_SECONDS`` writes the port it serves on, and ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps

from worker.demo.image_server import ImageServer, Reply
from worker.demo.photos import jpeg, photos

_LONGEST_SIDE = 512


def path(number: int) -> str:
    return f"/{number}.jpg"


def distinct_jpegs(count: int) -> list[bytes]:
    """Crops of the photos in wheels, half of them mirrored, 512 pixels wide or high."""
    chance = random.Random(0)
    taken = itertools.cycle(photos().values())
    found: dict[bytes, None] = {}
    while len(found) < count:
        crop = _crop(next(taken), chance)
        crop = ImageOps.contain(crop, (_LONGEST_SIDE, _LONGEST_SIDE))
        crop = ImageOps.mirror(crop) if chance.random() < 0.5 else crop
        found[jpeg(crop, quality=85)] = None
    return list(found)


def _crop(photo: Image.Image, chance: random.Random) -> Image.Image:
    share = chance.uniform(0.6, 0.95)
    width, height = round(photo.width * share), round(photo.height * share)
    left, top = chance.randrange(photo.width - width), chance.randrange(photo.height - height)
    return photo.crop((left, top, left + width, top + height))


class _Endless(dict[str, Reply]):
    """Of each number beyond ``count`` a copy, with other bytes that look the same."""

    def __init__(self, count: int, delay_seconds: float) -> None:
        super().__init__()
        for number, body in enumerate(distinct_jpegs(count)):
            self[path(number)] = Reply(body, delay_seconds=delay_seconds)

    def get(self, asked: str, default: Any = None) -> Any:
        """Made when it is asked for: thousands would fill the memory."""
        number = int(asked.strip("/").partition(".")[0])
        reply = self[path(number % len(self))]
        return reply if asked in self else replace(reply, body=_marked(reply.body, str(number)))


def _marked(body: bytes, mark: str) -> bytes:
    """The JPEG with a comment behind its first marker."""
    return body[:2] + b"\xff\xfe" + (2 + len(mark)).to_bytes(2) + mark.encode() + body[2:]


@contextmanager
def image_server(count: int, *, delay_seconds: float = 0.0) -> Iterator[int]:
    """Its port. It has ``count`` photos, and copies of them under higher numbers."""
    command = [sys.executable, "-m", "tests.bench.images", str(count), str(delay_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def _serve(count: int, delay_seconds: float) -> None:
    server = ImageServer({})
    server.replies = _Endless(count, delay_seconds)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    await server.serve(lambda: print(server.port, flush=True), stop)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
