"""One picture at the model's size: its centre, all of it, or tiles along its longer side.

The centre view gives the same pixels as ``open_clip.transform.image_transform(is_train=False)``
does before it makes a tensor, with Pillow alone. Resizing works in the picture's own mode (L, RGB,
CMYK), as it does there.
"""

from __future__ import annotations

from PIL import Image

from worker.types import FramePlan, PreprocessSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Up to the most common shape of a photo, 4:3, one tile will do: models were trained on its centre.
_SQUARISH = 4 / 3

# A strip of 1 × 50,000 pixels, scaled until its shorter side fits, would take gigabytes. Above
# this many pixels each window is resampled on its own, which may differ in the last bit.
_MAX_SCALED_PIXELS = 16_000_000


def windows(image: Image.Image, spec: PreprocessSpec, plan: FramePlan) -> list[Image.Image]:
    """The views of one picture, each of ``spec.size`` or, where bars belong around it, smaller."""
    height, width = spec.size
    if plan.views == "pad" or (plan.views == "centre" and spec.resize_mode == "longest"):
        return [image.resize(_longest(image.size, spec), _RESAMPLING[spec.interpolation])]
    if plan.views == "centre" and spec.resize_mode == "squash":
        return [image.resize((width, height), _RESAMPLING[spec.interpolation])]
    scaled = _shortest(image.size, spec)
    tiles = plan.max_tiles if plan.views == "tiles" else 1
    return _cut(image, scaled, _corners(scaled, (width, height), tiles), spec)


def padded(window: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """``window`` (RGB) in the middle of ``spec.size``, with bars of ``spec.fill`` around it."""
    height, width = spec.size
    if window.size == (width, height):
        return window
    canvas = Image.new("RGB", (width, height), (spec.fill,) * 3)
    canvas.paste(window, ((width - window.width) // 2, (height - window.height) // 2))
    return canvas


def _shortest(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(width, height) that covers ``spec.size``; rounded as open_clip does, hence two ways."""
    (width, height), (rows, columns) = size, spec.size
    if rows == columns:  # torchvision's Resize of the shorter edge
        if width <= height:
            return columns, int(columns * height / width)
        return int(rows * width / height), rows
    ratio = min(height / rows, width / columns)
    return round(width / ratio), round(height / ratio)


def _longest(size: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """(width, height) that fits into ``spec.size``."""
    (width, height), (rows, columns) = size, spec.size
    ratio = max(height / rows, width / columns)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _corners(
    scaled: tuple[int, int], window: tuple[int, int], max_tiles: int
) -> list[tuple[int, int]]:
    """(left, top) of each window: the centre, or evenly from one end to the other."""
    spare_x, spare_y = scaled[0] - window[0], scaled[1] - window[1]
    ratio = max(scaled[0] / window[0], scaled[1] / window[1])
    # the ceiling of a ratio that rounding to whole pixels has pushed just over a whole number
    # would be one tile too many
    needed = 1 if ratio <= _SQUARISH + 0.01 else -int(-(ratio - 0.01) // 1)
    count = min(needed, max_tiles)
    if count == 1:
        return [(round(spare_x / 2), round(spare_y / 2))]
    return [
        (round(spare_x * i / (count - 1)), round(spare_y * i / (count - 1))) for i in range(count)
    ]


def _cut(
    image: Image.Image,
    scaled: tuple[int, int],
    corners: list[tuple[int, int]],
    spec: PreprocessSpec,
) -> list[Image.Image]:
    """Windows of ``spec.size`` at ``corners`` of ``image`` scaled to ``scaled``."""
    height, width = spec.size
    # open_clip resizes to a size that is not square bicubically, whatever the configuration says
    resampling = _RESAMPLING[spec.interpolation if height == width else "bicubic"]
    if scaled[0] * scaled[1] <= _MAX_SCALED_PIXELS:
        whole = image.resize(scaled, resampling)
        return [whole.crop((x, y, x + width, y + height)) for x, y in corners]
    x_step, y_step = image.width / scaled[0], image.height / scaled[1]
    return [
        image.resize(
            (width, height),
            resampling,
            box=(x * x_step, y * y_step, (x + width) * x_step, (y + height) * y_step),
        )
        for x, y in corners
    ]
