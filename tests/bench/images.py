"""Distinct JPEGs, and a server of them in a process of its own: ``python -m tests.bench.images N``.

It writes the port it serves on, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Iterator

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


def _replies(count: int) -> Iterator[tuple[str, Reply]]:
    for number, body in enumerate(distinct_jpegs(count)):
        yield path(number), Reply(body)


async def _serve(count: int) -> None:
    server = ImageServer(dict(_replies(count)))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    await server.serve(lambda: print(server.port, flush=True), stop)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
