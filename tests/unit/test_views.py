from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worker.types import FramePlan, PreprocessSpec
from worker.views import padded, windows

CENTRE, PAD, TILES = FramePlan(views="centre"), FramePlan(views="pad"), FramePlan(views="tiles")


def spec_of(size: tuple[int, int] = (64, 64), **options: Any) -> PreprocessSpec:
    return PreprocessSpec(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **options)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(width: int, height: int) -> Image.Image:
    """Brightness rises along the longer side."""
    line = np.linspace(0, 255, max(width, height)).astype(np.uint8)
    grid = np.tile(line, (height, 1)) if width >= height else np.tile(line[:, None], (1, width))
    return Image.fromarray(grid).convert("RGB")


def views(image: Image.Image, spec: PreprocessSpec, plan: FramePlan) -> list[np.ndarray]:
    return [np.asarray(padded(window, spec)) for window in windows(image, spec, plan)]


def as_open_clip_does(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    from open_clip.transform import image_transform

    transform = image_transform(
        spec.size,
        is_train=False,
        resize_mode=spec.resize_mode,
        interpolation=spec.interpolation,
        fill_color=spec.fill,
    )
    for step in transform.transforms[:-2]:  # without the tensor and its normalisation
        image = step(image)
    return np.asarray(image)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(8, 700),
    height=st.integers(8, 700),
    size=st.sampled_from([(64, 64), (224, 224), (256, 256), (336, 336), (96, 64), (64, 96)]),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 127]),
)
def test_the_centre_view_is_pixel_equal_to_open_clips_own_transform(
    width: int, height: int, size: tuple[int, int], **options: Any
) -> None:
    spec = spec_of(size, **options)
    image = noise(width, height)
    (view,) = views(image, spec, CENTRE)
    assert np.array_equal(view, as_open_clip_does(image, spec))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_modes_other_than_rgb_are_resized_before_they_become_rgb_as_open_clip_does(
    mode: str,
) -> None:
    spec = spec_of((224, 224))
    image = noise(500, 333).convert(mode)
    (window,) = windows(image, spec, CENTRE)
    assert np.array_equal(np.asarray(window.convert("RGB")), as_open_clip_does(image, spec))


def test_a_strip_too_long_to_scale_whole_gives_what_scaling_it_whole_gives() -> None:
    spec = spec_of((224, 224))
    strip = noise(900, 2)
    (view,) = views(strip, spec, CENTRE)
    whole = as_open_clip_does(strip, spec)
    assert np.abs(view.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 50_000), (50_000, 1)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("plan", [CENTRE, PAD, TILES])
def test_every_shape_gives_views_of_the_models_size(
    size: tuple[int, int], resize_mode: Any, plan: FramePlan
) -> None:
    spec = spec_of((64, 48), resize_mode=resize_mode)
    for view in views(Image.new("RGB", size, "red"), spec, plan):
        assert view.shape == (64, 48, 3)


def test_the_pad_view_shows_the_whole_image_between_bars_of_the_fill_colour() -> None:
    (view,) = views(Image.new("RGB", (200, 100), "red"), spec_of(fill=9), PAD)
    assert (view[16:48] == (255, 0, 0)).all()
    assert (view[:16] == 9).all()
    assert (view[48:] == 9).all()


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((100, 100), 1),
        ((400, 300), 1),
        ((300, 400), 1),
        ((300, 200), 2),
        ((200, 100), 2),
        ((1000, 333), 3),
        ((100, 310), 4),
        ((100, 2000), 4),
    ],
)
def test_longer_images_take_more_tiles_up_to_the_plans_number(
    size: tuple[int, int], tiles: int
) -> None:
    assert len(windows(noise(*size), spec_of(), TILES)) == tiles


def test_the_only_tile_of_a_squarish_image_is_its_centre() -> None:
    image, spec = noise(400, 300), spec_of()
    assert np.array_equal(views(image, spec, TILES)[0], views(image, spec, CENTRE)[0])


@given(
    long=st.integers(60, 300),
    wide=st.booleans(),
    max_tiles=st.integers(2, 8),
)
@settings(max_examples=50, deadline=None)
def test_tiles_go_from_one_end_to_the_other_and_leave_no_gap_if_there_are_enough(
    long: int, wide: bool, max_tiles: int
) -> None:
    image = ramp(long, 40) if wide else ramp(40, long)
    plan = FramePlan(views="tiles", max_tiles=max_tiles)
    tiles = [tile if wide else tile.transpose(1, 0, 2) for tile in views(image, spec_of(), plan)]
    starts = [int(tile[:, 0].mean()) for tile in tiles]
    ends = [int(tile[:, -1].mean()) for tile in tiles]
    assert starts[0] <= 2
    assert ends[-1] >= 253
    assert starts == sorted(starts)
    step = 255 * 40 / (long * 64) + 2  # of brightness from one pixel to the next
    if long / 40 <= max_tiles:
        assert all(start <= end + step for end, start in zip(ends, starts[1:], strict=False))


def test_every_interpolation_of_the_spec_is_known() -> None:
    from worker.types import Interpolation

    for interpolation in get_args(Interpolation):
        assert views(noise(9, 7), spec_of(interpolation=interpolation), CENTRE)[0].any()
