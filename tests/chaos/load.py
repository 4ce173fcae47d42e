"""What is asked of the fleet: requests of all kinds, made of a seed, and published in waves."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.images import UnreliableImages
from tests.e2e.scene import picture, request
from worker.demo.image_server import Reply
from worker.publish import KafkaPublisher
from worker.types import Message

#: Few large waves rather than a steady trickle, so that much is in work at any time.
_WAVE_SECONDS = 4.0

_COLOURS = ("red", "green", "blue", "black", "white")
_TENANTS = (None, "marketplace", "forum")

#: Of a hundred records, so many are
_URLS, _INLINE, _MISSING, _NO_IMAGE, _FORBIDDEN, _LATE = 82, 7, 3, 2, 1, 2  # the rest is malformed

_MALFORMED = (
    b"",
    b"{not JSON",
    b'{"schema_version": 2}',
    b'{"schema_version": 1, "request_id": "of no item"}',
    request("misspelt", "http://127.0.0.1/", polcy="default"),
)


@dataclass(frozen=True, slots=True)
class Item:
    """``request_id`` is None for a malformed record."""

    request_id: str | None
    key: bytes
    value: bytes


def gallery(seed: int, requests: int) -> dict[str, Reply]:
    """Distinct pictures, a fourth as many as requests; some take their time. And no picture."""
    chance = random.Random(seed)
    pictures = {
        f"/{number}.jpg": Reply(
            picture(chance.choice(_COLOURS), f"{seed} {number}"),
            delay_seconds=chance.uniform(0.05, 1.5),
        )
        for number in range(requests // 4)
    }
    return {**pictures, "/page.html": Reply(b"<html>no image</html>")}


def load_of(seed: int, requests: int, images: UnreliableImages) -> list[Item]:
    """In the order in which they are published. Half are of few items with many requests each, the
    others of items of their own; popular pictures are asked for again and again."""
    chance = random.Random(seed)
    paths = [path for path in images.replies if path.endswith(".jpg")]
    return [_item(chance, number, requests, paths, images) for number in range(requests)]


def _item(
    chance: random.Random,
    number: int,
    requests: int,
    paths: Sequence[str],
    images: UnreliableImages,
) -> Item:
    name = f"request-{number:05}"
    item = f"item-{chance.randrange(requests // 50)}" if chance.random() < 0.5 else f"of-{name}"
    fields: dict[str, Any] = {
        "item_id": item,
        "tenant": chance.choice(_TENANTS),
        "metadata": {"number": number},
    }
    kinds = {
        "url": _URLS,
        "inline": _INLINE,
        "missing": _MISSING,
        "no image": _NO_IMAGE,
        "forbidden": _FORBIDDEN,
        "late": _LATE,
        "malformed": 100 - (_URLS + _INLINE + _MISSING + _NO_IMAGE + _FORBIDDEN + _LATE),
    }
    [kind] = chance.choices(list(kinds), list(kinds.values()))
    url = images.url(paths[int(len(paths) * chance.random() ** 2)])
    match kind:
        case "malformed":
            return Item(None, item.encode(), chance.choice(_MALFORMED))
        case "inline":
            body = picture(chance.choice(_COLOURS), f"inline {number % 100}")
            value = request(name, data=base64.b64encode(body).decode(), **fields)
        case "missing":
            value = request(name, images.url("/none.jpg"), **fields)
        case "no image":
            value = request(name, images.url("/page.html"), **fields)
        case "forbidden":
            value = request(name, "http://169.254.169.254/latest/meta-data", **fields)
        case "late":
            value = request(name, url, deadline="2020-01-01T00:00:00Z", **fields)
        case _:
            value = request(name, url, **fields)
    return Item(name, item.encode(), value)


async def publish(items: Sequence[Item], bootstrap: str, topic: str, seconds: float) -> None:
    """Over so many seconds; returns once all are acknowledged.

    Idempotent, so that a broker which dies while it takes them does not take them twice.
    """
    publisher = KafkaPublisher(
        bootstrap=bootstrap, client_id="load", options={"enable_idempotence": True}
    )
    waves = max(1, round(seconds / _WAVE_SECONDS))
    size = -(-len(items) // waves)
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        await publisher.start()
        async with asyncio.TaskGroup() as group:
            for wave in range(waves):
                await asyncio.sleep(started + wave * _WAVE_SECONDS - loop.time())
                for item in items[wave * size : (wave + 1) * size]:
                    message = Message(topic, item.key, item.value)
                    group.create_task(publisher.publish(message))
    finally:
        await publisher.close()
