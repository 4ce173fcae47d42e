"""PDQ hashes: 256 bits that stay nearly the same when a picture is scaled, compressed or tinted.

The very bits of Facebook's reference code (https://github.com/facebook/ThreatExchange, pdq/). What
that does to a picture up to its 64 × 64 means is linear, and most of what it blurs it then drops:
as products of matrices it takes 0.2 ms for a photo of 512 pixels, with the binding ``pdqhash`` 2.5.
Two pictures count as one, customarily, where at most 31 bits differ.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.errors import Misconfigured
from worker.policy import Policy
from worker.types import Float32Rows

# As in pdq/cpp/io/pdqio.cpp: what is longer on any side becomes a square of this side, its shape
# not kept. The reference takes one pixel of many, and so sees a picture hidden in a larger one that
# nobody else sees; here they are averaged, which moves 2 to 8 bits. Smaller would be faster, and
# moves 14 of 256 bits on average.
_SIDE = 512

#: Of 0..100: the authors match no picture with less, as it is too plain.
_LEAST_QUALITY = 50

_LEAST_SIDE = 5  # what is narrower has no hash
_MEANS = 64

#: Which places along a side make each of its 64 means, and their weights: both [64, taps].
Taps: TypeAlias = tuple[NDArray[np.intp], Float32Rows]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# The first 16 waves of the discrete cosine transform, without the constant one.
_WAVES = np.cos(np.pi / (2 * _MEANS) * np.outer(np.arange(1, 17), np.arange(1, 2 * _MEANS, 2)))
_WAVES = (_WAVES * (2 / _MEANS) ** 0.5).astype(np.float32)


def perceptual_hash(picture: Image.Image) -> str | None:
    """64 hex digits, the first one of the highest bits as the reference prints them; None for a
    picture too plain to know again."""
    if max(picture.size) > _SIDE:
        means = _means_of_larger(picture)
    elif min(picture.size) < _LEAST_SIDE:
        return None
    else:
        means = _means(np.asarray(picture.convert("RGB")), *map(_taps, picture.size))
    if _quality(means) < _LEAST_QUALITY:
        return None
    strengths = (_WAVES @ means @ _WAVES.T).reshape(-1)[::-1]
    middle = np.partition(strengths, strengths.size // 2 - 1)[strengths.size // 2 - 1]
    return np.packbits(strengths > middle).tobytes().hex()


def _means_of_larger(picture: Image.Image) -> Float32Rows:
    """As if made a square of ``_SIDE`` first, by Pillow's ``resize`` with ``BOX`` and a
    ``reducing_gap`` of 1: whole pixels by whole numbers, and what is left of it in one with the
    blur. Of 820 photos no hash is another by more than 2 bits, in a third of the time."""
    # its luma alone: half the time, and of 100 photos no hash moved by more than 2 bits
    luma = picture.convert("L")
    across, down = map(_times_shorter, picture.size)
    if max(across, down) > 1:
        luma = luma.reduce((across, down))
    return _means(np.asarray(luma), *map(_taps_of_square, picture.size))


def _means(pixels: NDArray[np.uint8], across: Taps, down: Taps) -> Float32Rows:
    """64 × 64 blurred luma from ``pixels``: [height, width, 3], or luma alone, [height, width]."""
    height, width = pixels.shape[:2]
    at, weights = down
    rows = weights[:, None, :] @ pixels.reshape(height, -1)[at].astype(np.float32)
    rows = rows.reshape(_MEANS, width, -1)
    luma = rows @ _LUMA if pixels.ndim > 2 else rows[:, :, 0]
    at, weights = across
    means: Float32Rows = np.einsum("ijk,jk->ij", luma[:, at], weights)
    return means


def _times_shorter(length: int) -> int:
    """What a side is divided by, in whole pixels."""
    return max(1, length // _SIDE)


@lru_cache(maxsize=_SIDE)  # up to 27 KiB, and 0.1 ms to make
def _taps_of_square(length: int) -> Taps:
    """Where a side of ``length`` was made ``_times_shorter`` first and is then made ``_SIDE`` by
    means of those pixels whose middle lies within each new one's reach."""
    factor = _times_shorter(length)
    scale = length / factor / _SIDE
    middle, reach = (np.arange(_SIDE) + 0.5) * scale, max(scale, 1.0) / 2
    pixels = -(-length // factor)
    first = np.maximum(middle - reach + 0.5, 0).astype(int)
    end = np.minimum(middle + reach + 0.5, pixels).astype(int)
    at, weights = _taps(_SIDE)
    weights = weights / (end - first)[at]
    begin = first[at[:, :1]]
    count = (end[at[:, -1:]] - begin).max()
    begin = np.minimum(begin, pixels - count)
    merged = np.zeros((_MEANS, count), np.float32)
    for ahead in range((end - first).max()):
        here = np.minimum(first[at] + ahead, end[at] - 1)
        share = np.where(first[at] + ahead < end[at], weights, 0)
        np.add.at(merged, (np.arange(_MEANS)[:, None], here - begin), share)
    return begin + np.arange(count), merged


@lru_cache(maxsize=_SIDE)  # one for each length there is; up to 5 KiB, and up to 1 ms to make
def _taps(length: int) -> Taps:
    """The middle of each 64th of a side after two running means, whose windows are cut off at the
    ends."""
    window = -(-length // (2 * _MEANS))
    ahead = window // 2 + 1
    here = np.arange(length)
    first, end = np.maximum(here - window + ahead, 0), np.minimum(here + ahead, length)
    mean = (here >= first[:, None]) & (here < end[:, None])
    mean = mean / (end - first)[:, None]
    blur = mean[((np.arange(_MEANS) + 0.5) * length / _MEANS).astype(int)] @ mean
    count = (blur > 0).sum(axis=1).max()
    at = np.minimum((blur > 0).argmax(axis=1), length - count)[:, None] + np.arange(count)
    return at, np.take_along_axis(blur, at, axis=1).astype(np.float32)


def _quality(means: Float32Rows) -> int:
    """How much there is to see: the sum of all steps between neighbours, in whole per cent."""
    steps = (np.trunc(np.diff(means, axis=axis) * 100 / 255) for axis in (0, 1))
    return min(100, int(sum(np.abs(step).sum() for step in steps)) // 90)


def check_lists(policy: Policy, *, wanted: bool) -> None:
    """``wanted``: perceptual hashes are set to be computed. Raises ``Misconfigured`` where a policy
    has lists and there will be none to hold against them."""
    if not policy.lists or wanted:
        return
    raise Misconfigured(
        f"policy {policy.id!r} has `lists` of perceptual hashes, but none are computed here, so no "
        f"image would ever be on them; set IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true, or take "
        f"the lists out of the policy"
    )
