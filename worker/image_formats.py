"""Which decoder may see the bytes: the formats that are decoded, and how long a file says it is.

The first bytes choose one of Pillow's decoders, and Pillow is asked for that one and no other. What
is not listed is refused by name and reaches no decoder. HEIC is among them where pillow-heif is
installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from worker.errors import ErrorCode, Stage, Unexaminable

# Now, so that none is imported while an image waits, or where no file can be opened any more.
for _plugin in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP"):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
Image.preinit()  # likewise
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each core already
if importlib.util.find_spec("pillow_heif"):
    _heif = importlib.import_module("pillow_heif")
    _heif.register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )

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

_SIGNED_BYTES = 128  # of these a signature takes at most 76, after some white space

#: The names of the decoders, and the media types of what they read.
FORMATS = frozenset(format_ for _, _, format_ in _SIGNATURES if format_ in Image.OPEN)
MEDIA_TYPES = frozenset(Image.MIME[format_] for format_ in FORMATS)


def format_of(body: bytes) -> str:
    """Pillow's name of the format the bytes begin like. Raises ``Unexaminable``."""
    matches = (kind for kind in _SIGNATURES if re.match(kind[0], body, re.DOTALL))
    _, name, format_ = next(matches, (b"", "an unknown kind of file", None))
    if format_ in FORMATS:
        return format_
    raise Unexaminable(
        ErrorCode.NOT_AN_IMAGE,
        Stage.DECODE,
        f"the content looks like {name}, which is not a kind of image that is decoded",
    )


def format_label(body: bytes) -> str:
    """For metrics, the media type of what the bytes begin like without ``image/``: jpeg, png, …;
    other for what is not decoded."""
    try:
        return Image.MIME[format_of(body[:_SIGNED_BYTES])].removeprefix("image/")
    except Unexaminable:
        return "other"


@contextmanager
def reading(body: bytes, format_: str) -> Iterator[None]:
    """Translates what Pillow raises over bytes it cannot read, which is any kind of exception, and
    may come as late as the picture is resized."""
    try:
        yield
    except (MemoryError, Unexaminable):
        raise
    except Image.DecompressionBombError as error:
        raise Unexaminable(ErrorCode.TOO_MANY_PIXELS, Stage.DECODE, str(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system refused something, which is no fault of these bytes
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
