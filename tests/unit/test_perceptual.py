from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.policy_factory import category, policy_of
from worker.demo.photos import photos
from worker.errors import Misconfigured
from worker.perceptual import check_lists, perceptual_hash
from worker.policy import Decision, HashList, Policy


def scene(seed: int = 0, width: int = 480, height: int = 360) -> Image.Image:
    """Soft blobs, as most photos are from afar."""
    grid = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def bits(picture: Image.Image) -> int:
    text = perceptual_hash(picture)
    assert text is not None
    assert len(text) == 64
    return int(text, 16)


def apart(one: Image.Image, other: Image.Image) -> int:
    return (bits(one) ^ bits(other)).bit_count()


def as_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "changed",
    [
        scene().resize((240, 180)),
        scene(width=1440, height=1080),
        as_jpeg(scene(), 30),
        scene().point(lambda value: value * 3 // 4),
        scene().convert("L"),
    ],
    ids=["smaller", "larger", "compressed", "darker", "grey"],
)
def test_picture_is_known_again_within_the_customary_distance(changed: Image.Image) -> None:
    assert apart(scene(), changed) <= 31


def test_other_pictures_are_far_away() -> None:
    assert apart(scene(0), scene(1)) > 80
    assert apart(scene(), scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 80


def test_hashes_are_what_they_were_when_lists_were_written() -> None:
    y, x = np.mgrid[0:300, 0:400]
    blobs = [(60, 80, 50), (300, 40, 90), (210, 220, 70), (90, 260, 40), (380, 170, 60)]
    lit = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / r**2) * r for a, b, r in blobs)
    picture = Image.fromarray((lit * 2.2).astype(np.uint8))
    assert perceptual_hash(picture) == (
        "283b03c9a83b83c9283b03c9283b83c1383e03c3b83fabe1fdfafdf8abd55416"
    )


@pytest.mark.parametrize("size", [(300, 200), (1, 1), (3, 400)])
def test_plain_picture_has_no_hash(size: tuple[int, int]) -> None:
    assert perceptual_hash(Image.new("RGB", size, "teal")) is None


def test_picture_hidden_in_a_few_pixels_of_a_larger_one_is_not_taken_for_it() -> None:
    shown, hidden = scene(1, 2560, 2560), scene(2, 512, 512)
    pixels = np.array(shown)
    pixels[2::5, 2::5] = np.asarray(hidden)  # what one pixel in 25 would be taken for
    mixed = Image.fromarray(pixels)
    assert apart(mixed, shown) <= 31
    assert apart(mixed, hidden) > 80


@pytest.mark.parametrize("size", [(4, 512), (512, 4)])
def test_picture_too_narrow_has_no_hash(size: tuple[int, int]) -> None:
    assert perceptual_hash(scene().resize(size)) is None


# ---------------------------------------------------------------- against the reference


@given(
    width=st.integers(1, 512),
    height=st.integers(1, 512),
    seed=st.integers(0, 2**32 - 1),
    contrast=st.floats(0, 1),
)
def test_hash_is_the_reference_s(width: int, height: int, seed: int, contrast: float) -> None:
    pdqhash = pytest.importorskip("pdqhash", reason="pdqhash, the reference, is not installed")
    pixels = np.asarray(scene(seed, width, height)) * contrast
    pixels = pixels.astype(np.uint8)
    bits_, quality = pdqhash.compute(pixels)
    ours = perceptual_hash(Image.fromarray(pixels))
    assert (ours is None) == (quality < 50)
    # each pixel of a smaller one makes several means, and waves that fit in evenly come to just 0:
    # half of the bits are then what the last digits of a sum say
    if ours is not None and min(width, height) > 16:
        theirs = np.packbits(bits_.astype(bool)).tobytes()
        # sums in another order may bring the one nearest the median to its other side
        assert (int(ours, 16) ^ int.from_bytes(theirs)).bit_count() <= 2


@pytest.mark.parametrize("name", sorted(photos()))
def test_hash_of_a_photo_is_the_reference_s(name: str) -> None:
    pdqhash = pytest.importorskip("pdqhash", reason="pdqhash, the reference, is not installed")
    photo = photos()[name]
    photo.thumbnail((512, 512))
    bits_, _ = pdqhash.compute(np.asarray(photo))
    assert perceptual_hash(photo) == np.packbits(bits_.astype(bool)).tobytes().hex()


@given(
    width=st.integers(64, 1700),
    height=st.integers(513, 1700),
    turned=st.booleans(),
    seed=st.integers(0, 9),
)
def test_hash_of_a_larger_picture_is_that_of_the_square_made_of_it(
    width: int, height: int, turned: bool, seed: int
) -> None:
    picture = scene(seed, height, width) if turned else scene(seed, width, height)
    luma = picture.convert("L")
    square = luma.resize((512, 512), Image.Resampling.BOX, reducing_gap=1.0)
    # whole luma values in the square, and exact ones in what is hashed at once
    assert apart(picture, square) <= 4


# ---------------------------------------------------------------- lists that nothing could be on


def listing() -> Policy:
    known = HashList("bad", Decision.BLOCK, 31, "f", "sha256:0", frozenset({"0" * 64}))
    return replace(policy_of(category()), lists=(known,))


def test_policy_with_lists_is_taken_where_hashes_are_computed() -> None:
    check_lists(listing(), wanted=True)


def test_policy_with_lists_is_refused_where_hashes_are_turned_off() -> None:
    with pytest.raises(Misconfigured, match="set IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true"):
        check_lists(listing(), wanted=False)


def test_policy_without_lists_needs_no_hashes() -> None:
    check_lists(policy_of(category()), wanted=False)
