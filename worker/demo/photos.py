"""Photos that come in wheels, variants of them, and files and answers that are hard to take."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from PIL import Image, ImageOps

from worker.demo.image_server import Reply
from worker.errors import Misconfigured

_SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")

#: The EXIF tag that says how the camera was held; 6 is a quarter turn clockwise to be shown.
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image to be asked for, and what the server says when it is."""

    name: str
    reply: Reply
    shows: str = ""

    @property
    def path(self) -> str:
        return f"/{self.name}"


def photos() -> dict[str, Image.Image]:
    """Ten colour photos by name, RGB. Raises ``Misconfigured`` where their wheels are missing."""
    files = {
        Path(name).stem.split("_")[0]: _package(package) / folder / name
        for package, folder, names in (
            ("skimage", "data", _SCIKIT_IMAGE),
            ("sklearn", "datasets/images", _SCIKIT_LEARN),
        )
        for name in names
    }
    return {name: Image.open(path).convert("RGB") for name, path in files.items()}


def _package(name: str) -> Path:
    # Finding is enough: importing them takes seconds
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(
            f"the photos of {name} are not installed; run: pip install 'imagewarden[demo]'"
        )
    return Path(spec.submodule_search_locations[0])


def crop(photo: Image.Image, share: float = 0.8) -> Image.Image:
    """The middle ``share`` of each side, mirrored: other bytes, same subject."""
    width, height = photo.size
    margin_x, margin_y = (round(side * (1 - share) / 2) for side in (width, height))
    middle = photo.crop((margin_x, margin_y, width - margin_x, height - margin_y))
    return ImageOps.mirror(middle)


def jpeg(photo: Image.Image, quality: int = 90, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def exhibits(*, slow_seconds: float) -> list[Exhibit]:
    """Photos and crops of them, then one of each thing that goes wrong on the internet.

    ``slow_seconds`` is how long the slow one takes: give more than the worker waits.
    """
    taken = photos()
    good = [Exhibit(f"{name}.jpg", Reply(jpeg(photo))) for name, photo in taken.items()]
    crops = [Exhibit(f"{name}-crop.jpg", Reply(jpeg(crop(photo)))) for name, photo in taken.items()]
    whole = jpeg(taken["flower"])
    variants = [
        Exhibit("chelsea-again.jpg", Reply(jpeg(taken["chelsea"])), "same bytes, another URL"),
        Exhibit("surprise.gif", Reply(_surprise(taken)), "the third of four frames is the cat"),
        Exhibit("rotated.jpg", Reply(_rotated(taken["chelsea"])), "upright by EXIF only"),
        Exhibit("grey-alpha.png", Reply(_grey_alpha(taken["astronaut"])), "greyscale with alpha"),
        Exhibit("pixel.png", Reply(_png(Image.new("RGB", (1, 1), "teal"))), "1×1"),
        Exhibit("huge.jpg", Reply(_huge(taken["china"])), "30 megapixels"),
    ]
    hurdles = [
        Exhibit("truncated.jpg", Reply(whole[: len(whole) // 2]), "half a file"),
        Exhibit("page.jpg", Reply(b"<!doctype html><title>Sign in</title>"), "HTML"),
        Exhibit("gone.jpg", Reply(b"gone\n", HTTPStatus.NOT_FOUND), "404"),
        Exhibit("slow.jpg", Reply(whole, delay_seconds=slow_seconds), "past the time limit"),
        Exhibit(
            "inward.jpg",
            Reply(status=HTTPStatus.FOUND, headers={"Location": "http://10.0.0.1/admin"}),
            "redirect to a private address",
        ),
    ]
    return [*good, *crops, *variants, *hurdles]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _surprise(taken: dict[str, Image.Image]) -> bytes:
    frames = [
        ImageOps.fit(taken[name], (240, 240)) for name in ("china", "flower", "chelsea", "rocket")
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=400)
    return buffer.getvalue()


def _rotated(photo: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    return jpeg(photo.transpose(Image.Transpose.ROTATE_90), exif=exif)


def _grey_alpha(photo: Image.Image) -> bytes:
    grey = photo.convert("LA")
    grey.putalpha(Image.radial_gradient("L").resize(photo.size).point(lambda value: 255 - value))
    return _png(grey)


def _huge(photo: Image.Image) -> bytes:
    return jpeg(photo.resize((6400, 4700), Image.Resampling.BILINEAR), quality=60)
