"""What a soaked worker is asked for, at a steady rate: photos, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tests.bench.service import Client
from tests.e2e.scene import picture, request
from worker.bench.image_server import path
from worker.demo.image_server import ImageServer, Reply

#: Of a hundred requests, so many are for
SHARES = {
    "a photo": 66,
    "a photo again": 10,
    "a photo from a slow server": 8,
    "a large photo": 3,
    "an animation": 3,
    "a truncated photo": 2,
    "too many pixels": 1,
    "too many bytes": 1,
    "a page": 1,
    "nothing": 1,
    "a host that is silent": 1,
    "an address inside": 1,
    "no request at all": 2,
}

_SLOW_SECONDS = 3.0
_AGAIN = 50  # photos that are asked for again and again


def odd_replies() -> dict[str, Reply]:
    """What does not come from the server of photos."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    photo = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    flat = Image.new("L", (10_000, 9_000))
    return {
        "/slow.jpg": Reply(picture("green", "slow"), delay_seconds=_SLOW_SECONDS),
        "/large.jpg": Reply(_saved(photo, "JPEG")),
        "/animation.gif": Reply(_saved(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "/truncated.jpg": Reply(_saved(photo.resize((400, 300)), "JPEG")[:4000]),
        "/pixels.png": Reply(_saved(flat, "PNG")),
        "/bytes.jpg": Reply(_saved(photo.resize((40, 30)), "JPEG") + bytes(25 * 2**20)),
        "/page.html": Reply(b"<html>no image</html>"),
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class SteadyLoad:
    """``photos`` is the port of a server that has a photo under every number, ``silent`` one that
    takes connections and says nothing. ``published`` are the names of the requests so far."""

    client: Client
    topic: str
    odd: ImageServer
    photos: int
    silent: int
    per_second: float
    seed: int = 0
    published: list[str] = field(default_factory=list)

    async def run(self, stopped: asyncio.Event) -> None:
        """Returns once told to stop and all are acknowledged."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        async with asyncio.TaskGroup() as publishing:
            for name, value in self._requests():
                if stopped.is_set():
                    return
                self.published.append(name)
                publishing.create_task(self.client.publish(self.topic, {name: value}))
                at += 1 / self.per_second
                await asyncio.sleep(at - loop.time())

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        chance = random.Random(self.seed)
        new = itertools.count(_AGAIN)
        on_photos = f"http://127.0.0.1:{self.photos}"

        def odd(path: str) -> Callable[[int], str]:
            # each with an address of its own, so that no cache answers
            return lambda number: f"{self.odd.url(path)}?{number}"

        urls: dict[str, Callable[[int], str]] = {
            "a photo": lambda _: on_photos + path(next(new)),
            "a photo again": lambda _: on_photos + path(chance.randrange(_AGAIN)),
            "a photo from a slow server": odd("/slow.jpg"),
            "a large photo": odd("/large.jpg"),
            "an animation": odd("/animation.gif"),
            "a truncated photo": odd("/truncated.jpg"),
            "too many pixels": odd("/pixels.png"),
            "too many bytes": odd("/bytes.jpg"),
            "a page": odd("/page.html"),
            "nothing": odd("/none.jpg"),
            "a host that is silent": lambda number: f"http://127.0.0.1:{self.silent}/{number}",
            "an address inside": lambda number: f"http://169.254.169.254/{number}",
        }
        for number in itertools.count():
            name = f"{number:07}"
            [kind] = chance.choices(list(SHARES), list(SHARES.values()))
            if kind in urls:
                yield name, request(name, urls[kind](number), tenant=f"tenant-{number % 200}")
            else:
                yield name, b"{not JSON"
