"""The photos that are measured with: distinct, of about one size in bytes, the same every time."""

from __future__ import annotations

import io
import itertools
import math
import random

import numpy as np
from PIL import Image, ImageOps

from worker.demo import photos as demo
from worker.types import Pixels

#: What photos of the web come to at a quality of 85: 41 KB at 512 pixels.
_PIXELS_PER_KILOBYTE = 512 * 384 / 41
_QUALITIES = (25, 98)
_STEPS = 5


def photos(count: int, kilobytes: int = 50) -> list[bytes]:
    """JPEGs: crops of the photos that come in wheels, half of them mirrored, each of the quality
    that brings it nearest to the size.

    Raises ``Misconfigured`` where the wheels are missing.
    """
    chance = random.Random(0)
    taken = itertools.cycle(demo.photos().values())
    longest = round(math.sqrt(kilobytes * _PIXELS_PER_KILOBYTE * 4 / 3))
    found: dict[bytes, None] = {}
    while len(found) < count:
        crop = ImageOps.contain(_crop(next(taken), chance), (longest, longest))
        crop = ImageOps.mirror(crop) if chance.random() < 0.5 else crop
        found[_of_size(crop, kilobytes * 1000)] = None
    return list(found)


def photos_at(size: tuple[int, int], count: int) -> Pixels:
    """Of this height and width, 20 of them again and again: [count, height, width, 3]."""
    height, width = size
    pictures = [Image.open(io.BytesIO(body)).resize((width, height)) for body in photos(20)]
    return np.stack([np.asarray(pictures[number % 20]) for number in range(count)])


def marked(jpeg: bytes, mark: str) -> bytes:
    """The same picture in other bytes: with a comment behind its first marker."""
    return jpeg[:2] + b"\xff\xfe" + (2 + len(mark)).to_bytes(2) + mark.encode() + jpeg[2:]


def _crop(photo: Image.Image, chance: random.Random) -> Image.Image:
    share = chance.uniform(0.6, 0.95)
    width, height = round(photo.width * share), round(photo.height * share)
    left, top = chance.randrange(photo.width - width), chance.randrange(photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def _of_size(picture: Image.Image, wanted: int) -> bytes:
    """The nearest that halving the range of qualities comes to."""
    low, high = _QUALITIES
    tried = []
    for _ in range(_STEPS):
        middle = (low + high) // 2
        tried.append(demo.jpeg(picture, quality=middle))
        low, high = (middle, high) if len(tried[-1]) < wanted else (low, middle)
    return min(tried, key=lambda body: abs(len(body) - wanted))
