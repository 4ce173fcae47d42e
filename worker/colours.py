"""A decoded frame as a viewer shows it: eight bits, nothing transparent, upright, in sRGB. Pure.

Everything here comes before resizing, as it does on a screen. Averages of samples are not averages
of what they show: a file whose profile or gamma is far from the usual can hold one picture for
those who convert it first and another for those who shrink it first.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms

_BACKGROUND = "white"
_INTENT = (
    ImageCms.Intent.RELATIVE_COLORIMETRIC
)  # perceptual stretches blacks, which no browser does
_INVISIBLE = 3  # of 255: how far sRGB profiles of different makers are apart

# PNG's gAMA is the exponent that made the samples of light. What comes within 5 % of a screen's is
# left alone, as libpng does.
_SCREEN_GAMMA = 1 / 2.2
_GAMMA_TOLERANCE = 0.05

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def shown(image: Image.Image) -> Image.Image:
    """The loaded frame of ``image`` as L or RGB. ``image`` itself is left as it is."""
    picture, opacity = _samples(image)
    turn = _transposition(image)
    if turn is not None:
        picture, opacity = picture.transpose(turn), opacity and opacity.transpose(turn)
    picture = _in_srgb(picture, image.info, ours=picture is not image)
    if opacity:
        picture.paste(_BACKGROUND, mask=ImageChops.invert(opacity))
    return picture


def _samples(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The frame as L, RGB or CMYK, eight bits each, and its opacity (L), if not opaque."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _high_bytes(image)
    if mode in ("I", "F"):
        return _stretched(image), None
    if image.has_transparency_data:
        shade = "L" if mode in ("1", "L", "LA", "La") else "RGB"
        layer = image if mode in ("LA", "RGBA") else image.convert(shade + "A")
        return layer.convert(shade), layer.getchannel("A")
    if mode in ("L", "RGB", "CMYK"):
        return image, None
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image), None
    return image.convert("L" if mode == "1" else "RGB"), None


def _high_bytes(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    samples = np.asarray(image)
    clear = image.info.get("transparency")
    return (
        Image.fromarray((samples >> 8).astype(np.uint8)),
        None
        if clear is None
        else Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8)),
    )


def _stretched(image: Image.Image) -> Image.Image:
    samples = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    least, greatest = float(samples.min()), float(samples.max())
    samples -= least
    samples *= 255.0 / ((greatest - least) or 1.0)
    return Image.fromarray(samples.astype(np.uint8))


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """What turns ``image`` upright, by its EXIF data; data that cannot be read says nothing.

    ``Image.getexif`` would ask XMP too, which browsers do not. TIFFs come here upright: Pillow
    turns them as it loads them.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation)
    except (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return None
    return _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None


def _in_srgb(picture: Image.Image, info: Mapping[Any, Any], *, ours: bool) -> Image.Image:
    """By the embedded profile, else by the gamma of a PNG. ``ours``: may be written to, since the
    largest photos leave no room for another copy."""
    profile = info.get("icc_profile")
    if isinstance(profile, bytes):
        transform = _transform(profile, picture.mode)
        if transform and ours and picture.mode == "RGB":
            transform.apply_in_place(picture)
        elif transform:
            picture = transform.apply(picture)
    elif "srgb" not in info:
        picture = _gamma_corrected(picture, info.get("gamma"))
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _gamma_corrected(picture: Image.Image, gamma: object) -> Image.Image:
    if not isinstance(gamma, float) or gamma <= 0:
        return picture
    if abs(_SCREEN_GAMMA / gamma - 1) < _GAMMA_TOLERANCE:
        return picture
    light = (np.arange(256) / 255) ** (1 / gamma)
    # IEC 61966-2-1, the inverse transfer function of sRGB
    screen = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = (255 * screen).round().astype(int).tolist()
    return picture.point(table * len(picture.getbands()))


@lru_cache(maxsize=16)  # a profile takes longer to read than many a picture, and few are in use
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from ``profile`` to sRGB; None where there is none, or where it changes nothing."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, mode, "RGB", _INTENT
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
