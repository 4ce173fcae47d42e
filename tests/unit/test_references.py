"""Small files of every odd kind, held to what decoders that are not ours show of them.

``tests/references/make.py`` says how they came about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.imaging import Limits, decode
from worker.types import FramePlan, PreprocessSpec

REFERENCES = Path(__file__).resolve().parents[1] / "references"
NAMES = sorted(path.name for path in (REFERENCES / "files").iterdir())

#: Of 255. Most are equal to the last bit; the rest is how decoders round: YCbCr, lossy chroma, and
#: the darkest shades of a profile that stretches them.
MEAN_TOLERANCE = 1.0
MAX_TOLERANCE = 8

#: Where Pillow's conversion to RGB is all there is to do.
PLAIN = {
    "black-and-white.bmp",
    "black-and-white.png",
    "black-and-white.tif",
    "cmyk.jpg",
    "gamma-srgb.png",
    "palette.bmp",
    "palette.gif",
    "palette.png",
    "rgb-16.png",
}

Samples = np.ndarray[Any, np.dtype[np.int64]]


def shown_by_another(name: str) -> Samples:
    with Image.open(REFERENCES / "shown" / f"{name}.png") as image:
        return np.asarray(image).astype(int)


def shown_by_us(name: str) -> Samples:
    height, width, _ = shown_by_another(name).shape
    spec = PreprocessSpec(size=(height, width), mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash")
    body = (REFERENCES / "files" / name).read_bytes()
    return decode(body, "", spec, FramePlan(), Limits(10**6, 10**6)).pixels[0].astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_it_looks_as_others_show_it(name: str) -> None:
    difference = np.abs(shown_by_us(name) - shown_by_another(name))
    assert difference.mean() <= MEAN_TOLERANCE
    assert difference.max() <= MAX_TOLERANCE


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", NAMES)
def test_the_references_tell_more_than_plain_conversion_unless_listed(name: str) -> None:
    expected = shown_by_another(name)
    with Image.open(REFERENCES / "files" / name) as image:
        plain = image.convert("RGB").resize(expected.shape[1::-1], Image.Resampling.NEAREST)
    difference = np.abs(np.asarray(plain).astype(int) - expected)
    assert (difference.mean() <= MEAN_TOLERANCE) == (name in PLAIN)
