"""Pictures for a report on the past, which itself keeps none: where a CSV file says they are."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from worker.assembly import decoder_of, fetcher_of
from worker.errors import Misconfigured, Unexaminable
from worker.past.backtest import Flip
from worker.seams import Decoder, Fetcher
from worker.settings import Settings
from worker.types import Fetched, FramePlan, PreprocessSpec

_NAMES: Final = ("sha256", "item_id")  # what an image goes by; the first one that is there counts
_AT_ONCE: Final = 8
_QUALITY: Final = 75
_SIZE: Final = PreprocessSpec(size=(160, 160), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fill=128)
_WHOLE: Final = FramePlan(max_frames=1, views="pad")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image is: one of the two."""

    url: str | None = None
    path: Path | None = None


def read_places(file: Path) -> Mapping[str, Place]:
    """Places by sha256 or item id, from a CSV file with a column ``sha256`` or ``item_id`` (or
    both), and one of ``url`` or ``path`` (from the file's own folder). Raises ``Misconfigured``."""
    try:
        rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")), strict=True)
        columns = set(rows.fieldnames or ())
        if not columns & set(_NAMES) or not columns & {"url", "path"}:
            raise Misconfigured(
                f"{file} needs a column sha256 or item_id, and a column url or path; it has "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        places: dict[str, Place] = {}
        for row in rows:
            name = next((row[each] for each in _NAMES if row.get(each)), None)
            url, path = row.get("url"), row.get("path")
            if not name or bool(url) == bool(path):
                raise Misconfigured(
                    f"{file}:{rows.line_num}: a line names an image (sha256 or item_id), and a url "
                    "or a path"
                )
            places[name] = Place(url=url) if url else Place(path=file.parent / str(path))
        return places
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Misconfigured(f"{file} cannot be read: {why}") from None
    except csv.Error as error:
        raise Misconfigured(f"{file} is no CSV: {error}") from None


async def thumbnails_of(
    settings: Settings, places: Mapping[str, Place], flips: Sequence[Flip]
) -> list[bytes | str | None]:
    """Of each flip a small JPEG, or why there is none; None where no place is known.

    URLs are fetched under the worker's rules, and everything is decoded in a child process, as the
    worker does. What is no longer the image that was judged is not shown.
    """
    found = [places.get(flip.sha256 or "") or places.get(flip.item_id) for flip in flips]
    if not any(found):
        return [None] * len(flips)
    async with AsyncExitStack() as parts:
        fetcher = fetcher_of(settings)
        parts.push_async_callback(fetcher.close)
        decoder = decoder_of(settings, hashed=False)
        parts.push_async_callback(decoder.close)
        await decoder.start()
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(place: Place | None, flip: Flip) -> bytes | str | None:
            if place is None:
                return None
            async with slots:
                try:
                    return await _thumbnail(place, flip, fetcher, decoder)
                except Unexaminable as error:
                    return error.detail
                except OSError as error:
                    return f"it cannot be read ({error.strerror or type(error).__name__})"

        pairs = zip(found, flips, strict=True)
        return list(await asyncio.gather(*(one(place, flip) for place, flip in pairs)))


async def _thumbnail(place: Place, flip: Flip, fetcher: Fetcher, decoder: Decoder) -> bytes | str:
    if place.path is not None:
        body = await asyncio.to_thread(place.path.read_bytes)
    else:
        assert place.url is not None
        fetched = await fetcher.fetch(place.url)
        assert isinstance(fetched, Fetched)  # the other is the answer to an ETag
        body = fetched.body
    digest = hashlib.sha256(body).hexdigest()
    if flip.sha256 not in (None, digest):
        return "another image is there by now"
    decoded = await decoder.decode(body, digest, _SIZE, _WHOLE)
    jpeg = io.BytesIO()
    Image.fromarray(decoded.pixels[0]).save(jpeg, "JPEG", quality=_QUALITY)
    return jpeg.getvalue()
