from __future__ import annotations

import errno
import hashlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from worker.errors import ErrorCode, Stage, Unexaminable
from worker.image_formats import FORMATS as ALLOWED
from worker.image_formats import reading
from worker.imaging import Limits, decode
from worker.perceptual import perceptual_hash
from worker.types import Decoded, FramePlan, PreprocessSpec

SPEC = PreprocessSpec(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SQUASH = PreprocessSpec(
    size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_mode="squash"
)
LIMITS = Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"]
ANIMATED = ["GIF", "PNG", "WEBP", "AVIF", "TIFF"]


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def decoded(
    body: bytes,
    spec: PreprocessSpec = SPEC,
    plan: FramePlan | None = None,
    limits: Limits = LIMITS,
) -> Decoded:
    return decode(body, hashlib.sha256(body).hexdigest(), spec, plan or FramePlan(), limits)


def rejection(body: bytes, limits: Limits = LIMITS) -> Unexaminable:
    with pytest.raises(Unexaminable) as caught:
        decoded(body, limits=limits)
    assert caught.value.stage is Stage.DECODE
    return caught.value


def middle(body: bytes) -> tuple[int, ...]:
    return tuple(int(value) for value in decoded(body).pixels[0, 16, 16])


def near(colour: tuple[int, ...], expected: tuple[int, ...], by: int = 3) -> bool:
    return all(abs(int(a) - b) <= by for a, b in zip(colour, expected, strict=True))


def photo(width: int = 90, height: int = 60) -> Image.Image:
    """Not symmetric in any way, and smooth enough to survive lossy formats."""
    image = Image.new("RGB", (width, height), (40, 90, 160))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2, height // 3), fill=(220, 60, 30))
    draw.rectangle((0, height // 2, width // 4, height), fill=(240, 230, 90))
    return image


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize("format_", FORMATS)
def test_every_allowed_format_is_decoded_to_about_the_same_picture(format_: str) -> None:
    image = photo()
    result = decoded(encoded(image, format_), SQUASH)
    assert result.pixels.shape == (1, 32, 32, 3)
    assert result.pixels.dtype == np.uint8
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(result.pixels[0] - expected).mean() < 6


def test_the_facts_are_those_of_the_file() -> None:
    body = encoded(photo(), "JPEG")
    facts = decoded(body).facts
    assert facts.sha256 == hashlib.sha256(body).hexdigest()
    assert (facts.width, facts.height) == (90, 60)
    assert facts.media_type == "image/jpeg"
    assert facts.bytes == len(body)
    assert (facts.frames, facts.rows) == (1, (0,))


def test_the_perceptual_hash_is_that_of_the_first_frame_whatever_the_model_sees_of_it() -> None:
    frames = [noise(200, 50), photo(200, 50)]
    body = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    tiles = decoded(body, SQUASH, FramePlan(views="tiles"))
    assert tiles.facts.frames == 2
    assert tiles.facts.perceptual_hash == decoded(body).facts.perceptual_hash
    assert tiles.facts.perceptual_hash == perceptual_hash(frames[0])


def test_there_is_no_perceptual_hash_where_none_is_wanted() -> None:
    body = encoded(noise(200, 50), "PNG")
    sha256 = hashlib.sha256(body).hexdigest()
    without = decode(body, sha256, SPEC, FramePlan(), LIMITS, hashed=False)
    assert without.facts.perceptual_hash is None
    assert without.facts.unhashed


def test_picture_too_plain_for_a_perceptual_hash_is_told_from_one_nobody_looked_at() -> None:
    facts = decoded(encoded(Image.new("RGB", (300, 200), "teal"), "PNG")).facts
    assert facts.perceptual_hash is None
    assert not facts.unhashed


def test_one_pixel_is_an_image() -> None:
    assert near(middle(encoded(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG")), (10, 20, 30))


# ---------------------------------------------------------------- as a viewer shows it


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_turns_the_image_upright(format_: str, orientation: int) -> None:
    upright = photo()
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(encoded(stored, format_, exif=exif))
    assert (result.facts.width, result.facts.height) == upright.size
    expected = decoded(encoded(upright, "PNG")).pixels.astype(int)
    assert np.abs(result.pixels - expected).mean() < 6


def test_an_orientation_in_xmp_turns_nothing() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decoded(encoded(photo(), "JPEG", xmp=xmp)).facts.width == 90


def test_exif_data_that_cannot_be_read_is_ignored() -> None:
    body = encoded(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\xff" * 30)
    assert decoded(body).facts.width == 90


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_show_a_white_background(mode: str) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode)
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128)).convert(mode)
    solid = Image.new("RGBA", (40, 40), (0, 0, 0, 255)).convert(mode)
    assert middle(encoded(clear, "PNG")) == (255, 255, 255)
    assert near(middle(encoded(half, "PNG")), (127, 127, 127))
    assert middle(encoded(solid, "PNG")) == (0, 0, 0)


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_a_palette_is_looked_up_and_its_transparent_entry_shows_white(format_: str) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 200, 30, 60])
    assert middle(encoded(image, format_)) == (200, 30, 60)
    assert middle(encoded(image, format_, transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 0)])
def test_a_colour_declared_transparent_shows_white(mode: str, colour: Any) -> None:
    image = Image.new(mode, (40, 40), colour)
    assert middle(encoded(image, "PNG", transparency=colour)) == (255, 255, 255)


def test_black_and_white_and_grey_become_grey_rgb() -> None:
    assert middle(encoded(Image.new("1", (40, 40), 1), "PNG")) == (255, 255, 255)
    assert middle(encoded(Image.new("L", (40, 40), 77), "PNG")) == (77, 77, 77)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format_: str) -> None:
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert near(middle(encoded(cyan, format_)), (0, 255, 255), by=4)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_samples_are_scaled_not_clipped(format_: str) -> None:
    image = Image.fromarray(np.full((40, 40), 0x4080, dtype=np.uint16))
    assert image.mode == "I;16"
    assert middle(encoded(image, format_)) == (0x40, 0x40, 0x40)


def test_16_bit_samples_of_either_byte_order_look_alike() -> None:
    header = {256: 40, 257: 40, 258: 16, 259: 1, 262: 1, 273: 122, 277: 1, 278: 40, 279: 3200}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, v) for tag, v in header.items())
    directory = struct.pack(">H", len(header)) + entries + bytes(4)
    body = b"MM\0*" + struct.pack(">I", 8) + directory + b"\x40\x80" * 1600
    assert 8 + len(directory) == header[273]
    assert middle(body) == (0x40, 0x40, 0x40)


@pytest.mark.parametrize("samples", [np.float32, np.int32])
def test_floating_point_and_32_bit_samples_are_stretched_to_their_range(samples: Any) -> None:
    ramp = np.tile(np.linspace(-1000, 3000, 32), (32, 1)).astype(samples)
    pixels = decoded(encoded(Image.fromarray(ramp), "TIFF")).pixels[0]
    assert pixels[:, 0].max() == 0
    assert pixels[:, -1].min() == 255
    assert (np.diff(pixels[0, :, 0].astype(int)) > 0).all()


def test_samples_that_are_not_numbers_are_black_and_spoil_nothing() -> None:
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    ramp[0, 5], ramp[1, 5] = np.nan, np.inf
    pixels = decoded(encoded(Image.fromarray(ramp), "TIFF")).pixels[0]
    assert pixels[16, -1, 0] == 255


def test_lab_becomes_rgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (40, 40), (200, 30, 60)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    assert near(middle(encoded(lab, "TIFF")), (200, 30, 60), by=6)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile_with_red_and_blue_exchanged() -> bytes:
    return (
        srgb_profile()
        .replace(b"rXYZ", b"????", 1)
        .replace(b"bXYZ", b"rXYZ", 1)
        .replace(b"????", b"bXYZ", 1)
    )


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_embedded_profile(format_: str) -> None:
    red = Image.new("RGB", (40, 40), (250, 5, 5))
    body = encoded(red, format_, icc_profile=profile_with_red_and_blue_exchanged())
    assert near(middle(body), (5, 5, 250), by=8)


def steep_profile() -> bytes:
    """Of an exponent of 8: nearly all shades are nearly black."""
    profile = srgb_profile()
    at = profile.index(b"para")
    curve = profile[at : at + 32]
    steep = b"para" + bytes(8) + struct.pack(">i", 8 * 65536)
    return profile.replace(curve, steep.ljust(32, b"\0"))


@pytest.mark.parametrize("how", ["profile", "gamma"])
def test_a_picture_hidden_between_bright_pixels_is_the_one_that_viewers_show(how: str) -> None:
    # every second pixel is white on a screen or black; by their averages, all is the same grey
    samples = np.full((64, 64), 110, dtype=np.uint8)
    samples[::2, ::2] = 255
    samples[:, 40:] = 146
    picture = Image.fromarray(np.stack([samples] * 3, axis=-1))
    if how == "profile":
        body = encoded(picture, "PNG", icc_profile=steep_profile())
    else:
        body = with_chunk(encoded(picture, "PNG"), b"gAMA", struct.pack(">I", 12_500))
    pixels = decoded(body).pixels[0, 8:24, :, 0].astype(int)
    assert 50 <= pixels[:, :16].mean() <= 90  # a quarter of them white
    assert pixels[:, 24:].mean() <= 30


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """``png`` with one more chunk behind its header."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def test_an_srgb_profile_changes_nothing() -> None:
    plain, tagged = (encoded(noise(60, 60), "PNG", icc_profile=p) for p in (None, srgb_profile()))
    assert np.array_equal(decoded(plain).pixels, decoded(tagged).pixels)


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        srgb_profile()[:200],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["garbage", "cut", "of another colour space"],
)
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    body = encoded(Image.new("RGB", (40, 40), (200, 30, 60)), "PNG", icc_profile=profile)
    assert middle(body) == (200, 30, 60)


# ---------------------------------------------------------------- frames


def animation(format_: str, frames: int) -> bytes:
    """Frame i is grey of brightness 8·i."""
    first, *rest = [Image.new("RGB", (40, 40), (8 * i,) * 3) for i in range(frames)]
    return encoded(first, format_, save_all=True, append_images=rest)


@pytest.mark.parametrize("format_", ANIMATED)
def test_every_frame_of_a_short_animation_is_shown(format_: str) -> None:
    result = decoded(animation(format_, 5))
    assert result.facts.frames == 5
    assert result.facts.rows == (0, 1, 2, 3, 4)
    assert near(tuple(result.pixels[:, 16, 16, 0]), (0, 8, 16, 24, 32), by=3)


@pytest.mark.parametrize("format_", ANIMATED)
def test_a_long_animation_is_sampled_from_its_first_frame_to_its_last(format_: str) -> None:
    result = decoded(animation(format_, 30), plan=FramePlan(max_frames=4))
    assert result.facts.frames == 30
    assert result.facts.rows == (0, 10, 19, 29)
    assert near(tuple(result.pixels[:, 16, 16, 0]), (0, 80, 152, 232), by=3)


def test_one_frame_is_the_first() -> None:
    result = decoded(animation("GIF", 5), plan=FramePlan(max_frames=1))
    assert result.facts.rows == (0,)


def test_rows_are_the_frames_times_the_views() -> None:
    wide = [Image.new("RGB", (100, 20), colour) for colour in ("red", "blue")]
    body = encoded(wide[0], "GIF", save_all=True, append_images=wide[1:])
    result = decoded(body, plan=FramePlan(views="tiles", max_tiles=3))
    assert result.facts.rows == (0, 0, 0, 1, 1, 1)
    assert result.pixels.shape == (6, 32, 32, 3)
    assert near(tuple(result.pixels[3, 16, 16]), (0, 0, 255))


def test_of_a_multi_picture_jpeg_only_the_picture_that_viewers_show_is_decoded() -> None:
    body = encoded(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60))])
    facts = decoded(body).facts
    assert (facts.media_type, facts.frames, facts.rows) == ("image/jpeg", 1, (0,))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"<!DOCTYPE html><title>Not found</title>", "HTML"),
        (b"\xef\xbb\xbf \n<html><body>", "HTML"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b'{"error": "gone"}', "JSON"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
        (b"\0\0\0\x20ftypisom" + bytes(30), "video"),
        (b"Sorry, this picture is not available.", "plain text"),
        (bytes(100), "unknown"),
        (b"", "unknown"),
    ],
)
def test_what_is_no_image_is_called_what_it_looks_like(body: bytes, named: str) -> None:
    error = rejection(body)
    assert error.code is ErrorCode.NOT_AN_IMAGE
    assert named in error.detail


def test_the_allowed_formats_are_these() -> None:
    assert ALLOWED - {"HEIF"} == set(FORMATS)


@pytest.mark.parametrize("format_", ["PPM", "ICO", "TGA", "PCX", "JPEG2000", "DDS", "EPS"])
def test_formats_that_are_not_listed_are_not_decoded(format_: str) -> None:
    assert rejection(encoded(photo(), format_)).code is ErrorCode.NOT_AN_IMAGE


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_that_breaks_off_is_truncated(format_: str, share: float) -> None:
    body = encoded(noise(200, 150), format_)
    assert rejection(body[: int(len(body) * share)]).code is ErrorCode.TRUNCATED


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_compressed_tiff_that_breaks_off_is_truncated(compression: str) -> None:
    body = encoded(noise(200, 150), "TIFF", compression=compression)
    assert rejection(body[: len(body) // 2]).code is ErrorCode.TRUNCATED


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_an_animation_that_breaks_off_is_truncated(format_: str) -> None:
    first, *rest = [noise(80, 60).rotate(9 * i) for i in range(6)]
    body = encoded(first, format_, save_all=True, append_images=rest)
    assert rejection(body[: len(body) * 3 // 4]).code is ErrorCode.TRUNCATED


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"MM\0*\0\0\0\x08"]
)
def test_bytes_that_only_begin_like_an_image_are_refused_as_a_damaged_one(head: bytes) -> None:
    # garbage where a length belongs may claim more bytes than there are
    code = rejection(head + b"\x5a" * 500).code
    assert code in (ErrorCode.UNDECODABLE, ErrorCode.TRUNCATED)


def test_what_the_system_refuses_is_not_blamed_on_the_file() -> None:
    with pytest.raises(OSError, match="Too many open files"), reading(b"", "PNG"):
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_picture_that_pillow_leaves_in_two_modes_is_undecodable() -> None:
    # a valid GIF whose local palette is grey and whose global one is not
    body = bytes.fromhex(
        "474946383961020002008000000001020304052c0000000002000200800000000101010806000108041010003b"
    )
    assert rejection(body).code is ErrorCode.UNDECODABLE


def test_damage_in_the_middle_is_undecodable() -> None:
    body = bytearray(encoded(noise(200, 150), "PNG"))
    body[len(body) // 2] ^= 0xFF
    assert rejection(bytes(body)).code is ErrorCode.UNDECODABLE


def test_too_many_pixels_are_refused_from_the_header_alone() -> None:
    body = encoded(Image.new("L", (1001, 1000)), "PNG")
    header_only = body[:60]
    limits = Limits(max_pixels=1_000_000, max_total_pixels=10_000_000)
    error = rejection(header_only + bytes(100), limits)
    assert error.code is ErrorCode.TOO_MANY_PIXELS
    assert "1001 × 1000" in error.detail


def test_as_many_pixels_as_allowed_are_decoded() -> None:
    limits = Limits(max_pixels=10_000, max_total_pixels=10_000)
    assert decoded(encoded(photo(100, 100), "PNG"), limits=limits).facts.width == 100


def test_an_animation_with_too_many_pixels_over_its_frames_is_refused() -> None:
    limits = Limits(max_pixels=1_600, max_total_pixels=1_600 * 4)
    assert decoded(animation("GIF", 4), limits=limits).facts.frames == 4
    assert rejection(animation("GIF", 5), limits).code is ErrorCode.TOO_MANY_PIXELS


def test_a_later_page_with_too_many_pixels_is_refused() -> None:
    pages = [photo(20, 20), photo(200, 200)]
    body = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    error = rejection(body, Limits(max_pixels=1_000, max_total_pixels=100_000))
    assert error.code is ErrorCode.TOO_MANY_PIXELS


def test_pages_with_too_many_pixels_together_are_refused() -> None:
    pages = [photo(20, 20), *[photo(100, 100)] * 3]
    body = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decoded(body, limits=Limits(10_000, 30_400)).facts.frames == 4
    assert rejection(body, Limits(10_000, 30_399)).code is ErrorCode.TOO_MANY_PIXELS


def test_dimensions_beyond_pillows_own_limit_are_too_many_pixels() -> None:
    body = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    struct.pack_into("<ii", body, 18, 2_000_000, 2_000_000)
    assert rejection(bytes(body)).code is ErrorCode.TOO_MANY_PIXELS


# ---------------------------------------------------------------- files of others


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_all_orientations_of_the_same_photo_decode_to_the_same_picture(
    data: Path, name: str
) -> None:
    files = sorted((data / "exif" / "recurser").glob(f"{name}_[1-8].jpg"))
    if not files:
        pytest.skip("no orientation photos among the data")
    first, *others = [decoded(file.read_bytes()) for file in files]
    assert len(others) == 7
    for other in others:
        assert (other.facts.width, other.facts.height) == (first.facts.width, first.facts.height)
        assert np.abs(other.pixels.astype(int) - first.pixels).mean() < 4


def test_it_imports_neither_torch_nor_what_needs_it() -> None:
    code = (
        "import sys, worker.decoder_process\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'asyncio', 'prometheus_client'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
