"""HEIC, where its plugin is installed, and what is said of it where it is not."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.decoding import LIMITS, children, decoded, rejection, running
from worker import imaging
from worker.errors import ErrorCode, Unexaminable
from worker.types import FramePlan, PreprocessSpec

INSTALLED = importlib.util.find_spec("pillow_heif") is not None
with_plugin = pytest.mark.skipif(not INSTALLED, reason="needs the extra heic (pillow-heif)")
SQUASH = PreprocessSpec((64, 64), (0, 0, 0), (1, 1, 1), resize_mode="squash")


def picture() -> Image.Image:
    image = Image.new("RGB", (128, 64), (40, 90, 160))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 63, 31), fill=(220, 60, 30))
    draw.rectangle((0, 48, 31, 63), fill=(240, 230, 90))
    return image


def heic(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", quality=95, chroma=444, **options)
    return buffer.getvalue()


def shown(body: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return imaging.decode(body, "", SQUASH, FramePlan(), LIMITS).pixels.astype(int)


EXPECTED = np.asarray(picture().resize((64, 64), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.skipif(INSTALLED, reason="the extra heic is installed")
def test_without_the_plugin_heic_is_refused_by_name() -> None:
    with pytest.raises(Unexaminable, match="pillow-heif is not installed") as caught:
        shown(b"\0\0\0\x18ftypheic" + bytes(40))
    assert caught.value.code is ErrorCode.NOT_AN_IMAGE


@with_plugin
def test_a_photo_is_shown_as_it_was_encoded() -> None:
    assert np.abs(shown(heic(picture()))[0] - EXPECTED).mean() < 4


@with_plugin
def test_an_orientation_in_its_exif_data_turns_nothing_since_the_container_says_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    assert np.abs(shown(heic(picture(), exif=exif))[0] - EXPECTED).mean() < 4


@with_plugin
def test_all_pictures_are_shown_wherever_the_primary_one_is() -> None:
    frames = [Image.new("RGB", (64, 64), (60 * i,) * 3) for i in range(3)]
    body = heic(frames[0], save_all=True, append_images=frames[1:], primary_index=2)
    pixels = shown(body)
    assert np.abs(pixels.mean(axis=(1, 2, 3)) - [0, 60, 120]).max() < 4


@with_plugin
def test_transparent_parts_are_shown_over_white() -> None:
    image = picture()
    image.putalpha(0)
    assert shown(heic(image)).min() >= 250


@with_plugin
def test_each_picture_of_a_sequence_is_a_frame() -> None:
    frames = [Image.new("RGB", (64, 64), (60 * i,) * 3) for i in range(4)]
    pixels = shown(heic(frames[0], save_all=True, append_images=frames[1:]))
    assert np.abs(pixels.mean(axis=(1, 2, 3)) - [0, 60, 120, 180]).max() < 4


@with_plugin
async def test_it_is_decoded_in_a_confined_process_by_one_thread() -> None:
    body = heic(picture().resize((2048, 1024)))
    async with running() as pool:
        result = await decoded(pool, body)
        assert (result.facts.media_type, result.facts.width) == ("image/heif", 2048)
        (child,) = children()
        assert child.num_threads() == 1
        error = await rejection(pool, body[: len(body) // 2])
    assert error.code is ErrorCode.TRUNCATED
