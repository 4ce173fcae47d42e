from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from worker.demo.photos import Exhibit, crop, exhibits, jpeg, photos

pytest.importorskip("skimage", reason="the photos come with the extra `demo`")
pytest.importorskip("sklearn", reason="the photos come with the extra `demo`")


@pytest.fixture(scope="module")
def shown() -> dict[str, Exhibit]:
    return {exhibit.name: exhibit for exhibit in exhibits(slow_seconds=7)}


def opened(exhibit: Exhibit) -> Image.Image:
    return Image.open(io.BytesIO(exhibit.reply.body))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images of one size, in grey levels."""
    pixels = (np.asarray(each.convert("RGB"), dtype=np.int16) for each in (one, other))
    return float(np.abs(np.subtract(*pixels)).mean())


def test_there_are_ten_photos_in_colour() -> None:
    taken = photos()
    assert len(taken) == 10
    assert {photo.mode for photo in taken.values()} == {"RGB"}
    assert min(min(photo.size) for photo in taken.values()) >= 224


def test_crop_is_smaller_and_mirrored() -> None:
    photo = photos()["chelsea"]
    middle = crop(photo, 0.5)
    assert abs(middle.width / photo.width - 0.5) < 0.01
    left = (photo.width - middle.width) // 2
    top = (photo.height - middle.height) // 2
    same_place = photo.crop((left, top, left + middle.width, top + middle.height))
    assert difference(ImageOps.mirror(middle), same_place) < difference(middle, same_place)


def test_no_two_exhibits_share_a_name(shown: dict[str, Exhibit]) -> None:
    assert len(exhibits(slow_seconds=7)) == len(shown)


def test_exhibits_are_the_same_bytes_at_every_call(shown: dict[str, Exhibit]) -> None:
    again = {exhibit.name: exhibit for exhibit in exhibits(slow_seconds=7)}
    assert again == shown


def test_one_content_is_served_under_two_names(shown: dict[str, Exhibit]) -> None:
    digests = [
        hashlib.sha256(shown[name].reply.body).digest()
        for name in ("chelsea.jpg", "chelsea-again.jpg", "chelsea-crop.jpg")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_cat_is_not_in_the_first_frame_of_the_animation(shown: dict[str, Exhibit]) -> None:
    animation = opened(shown["surprise.gif"])
    cat = ImageOps.fit(photos()["chelsea"], animation.size)
    differences = [difference(frame, cat) for frame in ImageSequence.Iterator(animation)]
    assert len(differences) == 4
    assert int(np.argmin(differences)) == 2


def test_rotated_photo_is_upright_only_by_its_exif(shown: dict[str, Exhibit]) -> None:
    cat, rotated = photos()["chelsea"], opened(shown["rotated.jpg"])
    assert rotated.size == (cat.height, cat.width)
    assert difference(ImageOps.exif_transpose(rotated), cat) < 5


def test_odd_files_are_what_they_say(shown: dict[str, Exhibit]) -> None:
    assert opened(shown["grey-alpha.png"]).mode == "LA"
    assert opened(shown["pixel.png"]).size == (1, 1)
    width, height = opened(shown["huge.jpg"]).size
    assert width * height >= 30_000_000
    with pytest.raises(OSError, match="truncated"):
        opened(shown["truncated.jpg"]).load()
    with pytest.raises(UnidentifiedImageError):
        opened(shown["page.jpg"])


def test_slow_one_is_as_slow_as_told(shown: dict[str, Exhibit]) -> None:
    assert {e.name: e.reply.delay_seconds for e in shown.values() if e.reply.delay_seconds} == {
        "slow.jpg": 7
    }


def test_photo_survives_its_encoding() -> None:
    photo = photos()["coffee"]
    assert difference(Image.open(io.BytesIO(jpeg(photo))), photo) < 5
