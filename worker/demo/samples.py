"""Sample images without end, for a service that runs: served, and asked for at a steady rate.

``python -m worker.demo.samples`` publishes to the request topic that the settings name. Most images
are new cuts of the demo's photos. The others are the demo's exhibits, again and again: repeats, for
the caches, and one of each thing that goes wrong on the internet.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import deque
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Final
from uuid import uuid4

from worker.demo.album import cut
from worker.demo.image_server import ImageServer, Reply, serving
from worker.demo.photos import exhibits, jpeg, photos
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher
from worker.schema import Request
from worker.settings import Settings
from worker.settings_load import load_settings
from worker.types import Message

_NEW_SHARE: Final = 0.8  # of the requests
_SLOW_SECONDS: Final = 20.0  # more than a worker waits


class Samples:
    """Images on a server, to be asked for, of which the last ``kept`` cuts are served: 20 MB, and
    more than should wait. Raises ``Misconfigured`` where the photos are not installed."""

    def __init__(self, server: ImageServer, chance: random.Random, *, kept: int = 1000) -> None:
        self._server = server
        self._chance = chance
        self._photos = photos()
        self._most = kept
        self._kept: deque[str] = deque()
        shown = exhibits(slow_seconds=_SLOW_SECONDS)
        self._exhibits = [exhibit.path for exhibit in shown]
        server.replies.update((exhibit.path, exhibit.reply) for exhibit in shown)

    def next(self) -> str:
        """The path of an image that is served by now."""
        if self._chance.random() >= _NEW_SHARE:
            return self._chance.choice(self._exhibits)
        name = self._chance.choice(list(self._photos))
        path = f"/cuts/{name}-{uuid4().hex}.jpg"
        self._server.replies[path] = Reply(jpeg(cut(self._photos[name], self._chance)))
        self._kept.append(path)
        if len(self._kept) > self._most:
            del self._server.replies[self._kept.popleft()]
        return path


async def publish(settings: Settings, samples: Samples, *, base: str, rate: float) -> None:
    """``rate`` requests a second, until cancelled, for images at ``base``. Raises ``Undelivered``
    when the topic does not take them."""
    publisher = KafkaPublisher(
        bootstrap=settings.kafka.bootstrap,
        client_id="samples",
        max_message_bytes=settings.kafka.message_max_bytes,
        options=settings.kafka_security.options(),
    )
    try:
        await publisher.start()
        while True:
            path = samples.next()
            request = Request(
                schema_version=1,
                request_id=str(uuid4()),
                item_id=PurePosixPath(path).name,
                tenant="samples",
                url=base + path,
            )
            value = request.model_dump_json(exclude_defaults=True).encode()
            message = Message(settings.kafka.requests_topic, request.item_id.encode(), value)
            await asyncio.gather(publisher.publish(message), asyncio.sleep(1 / rate))
    finally:
        await publisher.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.demo.samples", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where images are served")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument(
        "--base",
        help="where workers find them, as http://ADDRESS:PORT; by itself, at host and port",
    )
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    given = parser.parse_args()
    if given.rate <= 0:
        parser.error("--rate must be more than 0")
    try:
        settings = load_settings()
        with serving({}, host=given.host, port=given.port) as server, suppress(KeyboardInterrupt):
            base = given.base or f"http://{given.host}:{server.port}"
            samples = Samples(server, random.Random())
            print(f"images at {base}, {given.rate:g} requests a second", flush=True)  # noqa: T201
            asyncio.run(publish(settings, samples, base=base, rate=given.rate))
    except (Misconfigured, OSError) as error:
        sys.exit(f"imagewarden: {error}")


if __name__ == "__main__":
    main()
