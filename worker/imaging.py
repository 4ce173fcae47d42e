"""Bytes to pixels at the model's size, as a viewer would show them. Pure; runs in a child process.

A picture is shown as browsers show it: turned by its EXIF orientation, transparent parts over
white, 16-bit samples by their high byte, floating-point and 32-bit samples stretched between their
least and greatest, colours brought from the embedded ICC profile, or a PNG's gamma, to sRGB (a
broken profile is ignored). The frames of an animation and the pages of a TIFF are pictures of their
own; the further pictures of a multi-picture JPEG are not, since no viewer shows them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from worker.colours import shown
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.image_formats import format_of, reading
from worker.perceptual import perceptual_hash
from worker.types import Decoded, FramePlan, ImageFacts, PreprocessSpec
from worker.views import padded, windows


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_pixels`` of one frame; ``max_total_pixels`` of all frames or pages together, since
    showing the last frame of an animation means decoding those before it."""

    max_pixels: int
    max_total_pixels: int


def decode(
    body: bytes,
    sha256: str,
    spec: PreprocessSpec,
    plan: FramePlan,
    limits: Limits,
    *,
    hashed: bool = True,
) -> Decoded:
    """Raises ``Unexaminable`` and ``MemoryError``. ``sha256`` is the hex digest of ``body``; with
    ``hashed`` the facts have a perceptual hash, if there is one."""
    format_ = format_of(body)
    with reading(body, format_):
        image = Image.open(io.BytesIO(body), formats=(format_,))
        frames = 1 if format_ == "JPEG" else getattr(image, "n_frames", 1)
    _check_pixels(image.size, frames, limits.max_total_pixels)
    pixels, rows = [], []
    left = limits.max_total_pixels
    size, fingerprint = (0, 0), None
    for frame in _spread(frames, plan.max_frames):
        with reading(body, format_):
            image.seek(frame)  # the first one too: an HEIC opens at its primary picture
            # pages have sizes of their own
            _check_pixels(image.size, 1, min(left, limits.max_pixels))
            left -= image.width * image.height
            image.load()
            picture = shown(image)
            if not frame:
                size = picture.size
                # of the whole picture, not of what the model sees of it: the same for all models
                fingerprint = perceptual_hash(picture) if hashed else None
            for window in windows(picture, spec, plan):
                pixels.append(np.asarray(padded(window.convert("RGB"), spec)))
                rows.append(frame)
    facts = ImageFacts(
        sha256=sha256,
        perceptual_hash=fingerprint,
        media_type=Image.MIME[format_],
        width=size[0],
        height=size[1],
        bytes=len(body),
        frames=frames,
        rows=tuple(rows),
        too_plain=hashed and fingerprint is None,
    )
    return Decoded(np.stack(pixels), facts)


def _spread(frames: int, at_most: int) -> list[int]:
    """Indices evenly from the first frame to the last."""
    count = min(frames, at_most)
    return [round(i * (frames - 1) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _check_pixels(size: tuple[int, int], frames: int, allowed: int) -> None:
    width, height = size
    if width * height * frames > allowed:
        raise Unexaminable(
            ErrorCode.TOO_MANY_PIXELS,
            Stage.DECODE,
            f"{width} × {height} pixels × {frames} frames; at most {allowed} are decoded",
        )
