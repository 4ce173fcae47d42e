from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.policy_factory import category, policy_of
from worker import perceptual
from worker.errors import Misconfigured
from worker.perceptual import check_lists, perceptual_hash
from worker.policy import Decision, HashList, Policy

pdq = pytest.mark.skipif(
    perceptual.pdqhash is None, reason="pdqhash is not installed: there are no hashes"
)


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


@pdq
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


@pdq
def test_other_pictures_are_far_away() -> None:
    assert apart(scene(0), scene(1)) > 80
    assert apart(scene(), scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 80


@pdq
def test_hashes_are_what_they_were_when_lists_were_written() -> None:
    y, x = np.mgrid[0:300, 0:400]
    blobs = [(60, 80, 50), (300, 40, 90), (210, 220, 70), (90, 260, 40), (380, 170, 60)]
    lit = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / r**2) * r for a, b, r in blobs)
    picture = Image.fromarray((lit * 2.2).astype(np.uint8))
    assert perceptual_hash(picture) == (
        "283b03c9a83b83c9283b03c9283b83c1383e03c3b83fabe1fdfafdf8abd55416"
    )


@pdq
@pytest.mark.parametrize("size", [(300, 200), (1, 1), (3, 400)])
def test_plain_picture_has_no_hash(size: tuple[int, int]) -> None:
    assert perceptual_hash(Image.new("RGB", size, "teal")) is None


@pdq
def test_picture_hidden_in_a_few_pixels_of_a_larger_one_is_not_taken_for_it() -> None:
    shown, hidden = scene(1, 2560, 2560), scene(2, 512, 512)
    pixels = np.array(shown)
    pixels[2::5, 2::5] = np.asarray(hidden)  # what one pixel in 25 would be taken for
    mixed = Image.fromarray(pixels)
    assert apart(mixed, shown) <= 31
    assert apart(mixed, hidden) > 80


def test_there_are_no_hashes_without_pdqhash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "pdqhash", None)
    assert perceptual_hash(scene()) is None


# ---------------------------------------------------------------- lists that nothing could be on


def listing() -> Policy:
    known = HashList("bad", Decision.BLOCK, 31, "f", "sha256:0", frozenset({"0" * 64}))
    return replace(policy_of(category()), lists=(known,))


@pdq
def test_policy_with_lists_is_taken_where_hashes_are_computed() -> None:
    check_lists(listing(), wanted=True)


def test_policy_with_lists_is_refused_where_hashes_are_turned_off() -> None:
    with pytest.raises(Misconfigured, match="set IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true"):
        check_lists(listing(), wanted=False)


def test_policy_with_lists_is_refused_where_pdqhash_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perceptual, "pdqhash", None)
    with pytest.raises(Misconfigured, match=r"'test' has `lists`.*extra `pdq`"):
        check_lists(listing(), wanted=True)


def test_policy_without_lists_needs_no_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "pdqhash", None)
    check_lists(policy_of(category()), wanted=False)
