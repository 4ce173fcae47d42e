"""Bytes to pixels at the model's size, as a viewer would show them. Pure; runs in a child process.

A picture is shown as browsers show it: turned by its EXIF orientation, transparent parts over
white, 16-bit samples by their high byte, floating-point and 32-bit samples stretched between their
least and greatest, colours brought from the embedded ICC profile to sRGB (a broken profile is
ignored). The frames of an animation and the pages of a TIFF are pictures of their own; the further
pictures of a multi-picture JPEG are not, since no viewer shows them.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError

from worker.errors import ErrorCode, Stage, Unexaminable
from worker.types import Decoded, FramePlan, ImageFacts, PreprocessSpec
from worker.views import padded, windows

# Now, so that none is imported while an image waits.
for _plugin in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP"):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core already
if importlib.util.find_spec("pillow_heif"):
    _heif = importlib.import_module("pillow_heif")
    _heif.options.DECODE_THREADS = 1
    _heif.register_heif_opener()

_BACKGROUND = "white"
_INVISIBLE = 3  # of 255: how far sRGB profiles of different makers are apart

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_pixels`` of one frame; ``max_total_pixels`` of all frames or pages together, since
    showing the last frame of an animation means decoding those before it."""

    max_pixels: int
    max_total_pixels: int


def decode(
    body: bytes, sha256: str, spec: PreprocessSpec, plan: FramePlan, limits: Limits
) -> Decoded:
    """Raises ``Unexaminable`` and ``MemoryError``. ``sha256`` is the hex digest of ``body``."""
    format_ = _format_of(body)
    with _reading(body, format_):
        image = Image.open(io.BytesIO(body), formats=(format_,))
        frames = 1 if format_ == "JPEG" else getattr(image, "n_frames", 1)
    _check_pixels(image.size, 1, limits.max_pixels)
    _check_pixels(image.size, frames, limits.max_total_pixels)
    pixels, rows = [], []
    shown, fingerprint = (0, 0), ""
    for frame in _spread(frames, plan.max_frames):
        with _reading(body, format_):
            if frame:
                image.seek(frame)
                _check_pixels(image.size, 1, limits.max_pixels)  # pages have sizes of their own
            image.load()
            picture = _upright(_flattened(image), image)
        if not frame:
            shown, fingerprint = picture.size, _difference_hash(picture)
        for window in windows(picture, spec, plan):
            pixels.append(np.asarray(padded(_to_srgb(window, image.info.get("icc_profile")), spec)))
            rows.append(frame)
    facts = ImageFacts(
        sha256=sha256,
        perceptual_hash=fingerprint,
        media_type=Image.MIME[format_],
        width=shown[0],
        height=shown[1],
        bytes=len(body),
        frames=frames,
        rows=tuple(rows),
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


def _difference_hash(picture: Image.Image) -> str:
    """64 bits in hex: whether brightness rises from left to right, on a grid of 9 × 8.

    Of the whole picture rather than of what the model sees, so that it is the same for all models.
    """
    small = picture.resize((9, 8), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey = np.asarray(small.convert("RGB").convert("L"))
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


# ---------------------------------------------------------------- which decoder may see the bytes

# What files begin with, what to call them, and the one decoder of Pillow's that they are given to.
_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (rb"\xff\xd8\xff", "a JPEG", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG", "PNG"),
    (rb"GIF8[79]a", "a GIF", "GIF"),
    (rb"RIFF....WEBP", "a WebP image", "WEBP"),
    (rb"....ftyp.{0,64}avi[fs]", "an AVIF image", "AVIF"),
    (
        rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
        "an HEIC image (pillow-heif is not installed)",
        "HEIF",
    ),
    (rb"BM", "a BMP", "BMP"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF", "TIFF"),
    (rb"(\xef\xbb\xbf)?\s*<(?i:!doctype html|html|head|body|script|!--)", "an HTML page", None),
    (rb"(\xef\xbb\xbf)?\s*<(?i:\?xml|svg)", "an XML or SVG document", None),
    (rb"\s*[\[{]\s*[\"{\[\]}\d]", "JSON", None),
    (rb"%PDF", "a PDF", None),
    (rb"%!PS", "PostScript", None),
    (rb"8BPS", "a Photoshop file", None),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", None),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image", None),
    (rb"\0\0[\x01\x02]\0", "a Windows icon", None),
    (rb"PK\x03\x04", "a ZIP archive", None),
    (rb"\x1f\x8b", "gzip data", None),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video", None),
    (rb"[\t\r\n\x20-\x7e]{16,}", "plain text", None),
)


def _format_of(body: bytes) -> str:
    """Pillow's name of the format the bytes begin like. Raises ``Unexaminable``."""
    matches = (kind for kind in _SIGNATURES if re.match(kind[0], body, re.DOTALL))
    _, name, format_ = next(matches, (b"", "an unknown kind of file", None))
    if format_ in Image.OPEN:
        return format_
    raise Unexaminable(
        ErrorCode.NOT_AN_IMAGE,
        Stage.DECODE,
        f"the content looks like {name}, which is not a kind of image that is decoded",
    )


@contextmanager
def _reading(body: bytes, format_: str) -> Iterator[None]:
    """Translates what Pillow raises over bytes it cannot read, which is any kind of exception."""
    try:
        yield
    except (MemoryError, Unexaminable):
        raise
    except Image.DecompressionBombError as error:
        raise Unexaminable(ErrorCode.TOO_MANY_PIXELS, Stage.DECODE, str(error)) from error
    except Exception as error:
        if "truncated" in str(error).lower() or len(body) < _least_length(body):
            code, what = ErrorCode.TRUNCATED, "breaks off before its end"
        else:
            code, what = ErrorCode.UNDECODABLE, "cannot be decoded"
        # the message of this one is the address of a buffer
        reason = "bad header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise Unexaminable(code, Stage.DECODE, f"{format_} {what}: {reason:.200}") from error


def _least_length(body: bytes) -> int:
    """What the container says of its own length, for the formats whose decoders do not tell a
    file that breaks off from a broken one; 0 where it says nothing."""
    if body.startswith(b"RIFF"):  # WebP: one chunk around everything
        return 8 + int.from_bytes(body[4:8], "little")
    if body.startswith((b"II*\0", b"MM\0*")):  # TIFF: the directory often comes last
        return int.from_bytes(body[4:8], "little" if body.startswith(b"II") else "big")
    end = 0
    if body[4:8] == b"ftyp":  # AVIF, HEIC: a row of boxes; length 0 is "to the end of the file"
        while end < len(body) and (length := int.from_bytes(body[end : end + 4], "big")) > 7:
            end += length
    return end


# ---------------------------------------------------------------- as a viewer shows it


def _flattened(image: Image.Image) -> Image.Image:
    """The frame as L, RGB or CMYK, eight bits each, nothing transparent."""
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        return _stretched(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, _BACKGROUND)
        canvas.paste(layer, mask=layer)
        return canvas
    if mode in ("L", "RGB", "CMYK"):
        return image
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    return image.convert("L" if mode == "1" else "RGB")


def _stretched(image: Image.Image) -> Image.Image:
    samples = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    least, greatest = float(samples.min()), float(samples.max())
    samples -= least
    samples *= 255.0 / ((greatest - least) or 1.0)
    return Image.fromarray(samples.astype(np.uint8))


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """``picture`` turned as the EXIF data of ``image`` says; data that cannot be read says nothing.

    TIFFs come here upright: Pillow turns them as it loads them.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return picture
    transposition = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return picture if transposition is None else picture.transpose(transposition)


def _to_srgb(window: Image.Image, profile: object) -> Image.Image:
    """``window`` as sRGB. It is called after resizing: on a large photo this saves more time than
    decoding takes, and both spaces being gamma-encoded, nobody sees the difference."""
    if isinstance(profile, bytes) and (transform := _transform(profile, window.mode)):
        return transform.apply(window)
    return window.convert("RGB")


@lru_cache(
    maxsize=16
)  # a profile takes longer to read than a window to convert, and few are in use
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from ``profile`` to sRGB; None where there is none, or where it changes nothing."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "RGB":
        levels = range(0, 256, 51)
        colours = Image.new("RGB", (len(levels) ** 3, 1))
        colours.putdata([(r, g, b) for r in levels for g in levels for b in levels])
        change = ImageChops.difference(colours, transform.apply(colours))
        if np.asarray(change).max() <= _INVISIBLE:
            return None
    return transform
