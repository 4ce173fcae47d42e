"""PDQ hashes: 256 bits that stay nearly the same when a picture is scaled, compressed or tinted.

By Facebook's reference code as the ``pdqhash`` binding has it (https://github.com/facebook/
ThreatExchange, pdq/); where that is not installed there are no hashes. Two pictures count as one,
customarily, where at most 31 bits differ.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from worker.errors import Misconfigured
from worker.policy import Policy

try:
    import pdqhash
except ImportError:
    pdqhash = None

# As in pdq/cpp/io/pdqio.cpp: what is longer on any side becomes a square of this side, its shape
# not kept. The reference takes one pixel of many, and so sees a picture hidden in a larger one that
# nobody else sees; here they are averaged, which moves 2 to 8 bits. Smaller would be faster, and
# moves 14 of 256 bits on average.
_SIDE = 512

#: Of 0..100: the authors match no picture with less, as it is too plain.
_LEAST_QUALITY = 50


def available() -> bool:
    """Whether ``pdqhash`` is installed."""
    return pdqhash is not None


def perceptual_hash(picture: Image.Image) -> str | None:
    """64 hex digits, the first one of the highest bits as the reference prints them; None for a
    picture too plain to know again, and where ``pdqhash`` is not installed."""
    if pdqhash is None:
        return None
    if max(picture.size) > _SIDE:
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    bits, quality = pdqhash.compute(np.asarray(picture.convert("RGB")))
    return np.packbits(bits.astype(bool)).tobytes().hex() if quality >= _LEAST_QUALITY else None


def check_lists(policy: Policy, *, wanted: bool) -> None:
    """``wanted``: perceptual hashes are set to be computed. Raises ``Misconfigured`` where a policy
    has lists and there will be none to hold against them."""
    if not policy.lists or (wanted and available()):
        return
    remedy = (
        "install imagewarden with its extra `pdq` (pip install 'imagewarden[pdq]')"
        if wanted
        else "set IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true"
    )
    raise Misconfigured(
        f"policy {policy.id!r} has `lists` of perceptual hashes, but none are computed here, so no "
        f"image would ever be on them; {remedy}, or take the lists out of the policy"
    )
