"""A picture small enough for a report, and whether it has any colour."""

from __future__ import annotations

import io
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from worker.colours import shown
from worker.image_formats import format_of, reading

_LONGEST_SIDE: Final = 160
_QUALITY: Final = 75
_COLOURLESS: Final = 8  # levels of 255 between a pixel's channels that JPEG alone may bring about


class Thumbnail(NamedTuple):
    jpeg: bytes
    greyscale: bool


def thumbnail_of(body: bytes) -> Thumbnail:
    """The first frame, at most 160 pixels wide and high, as viewers show it.

    For images that were decoded in a child process before: here nothing limits them. Raises
    ``Unexaminable``.
    """
    format_ = format_of(body)
    with reading(body, format_):
        image = Image.open(io.BytesIO(body), formats=(format_,))
        image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))  # JPEGs: decoded smaller
        image.load()
        picture = shown(image).convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    channels = np.asarray(picture, dtype=np.int16)
    spread = channels.max(axis=2) - channels.min(axis=2)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=_QUALITY)
    return Thumbnail(jpeg.getvalue(), bool(np.quantile(spread, 0.99) <= _COLOURLESS))
