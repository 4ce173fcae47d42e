"""How numbers and sentences are written for people: digits that mean something, and no more."""

from __future__ import annotations

import math
from collections.abc import Iterable

THIN = "\N{NARROW NO-BREAK SPACE}"
DASH = "\N{EN DASH}"
NONE = "\N{EM DASH}"  #: where there is no number


def count(number: int) -> str:
    return f"{number:,}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def percent(share: float | None, unit: bool = True) -> str:
    """A share of 1 in percent: two significant digits below 10 %, none after the point above."""
    if share is None or not math.isfinite(share):
        return NONE
    of_hundred = 100 * share
    size = abs(of_hundred)
    # An almost whole share must not look whole: 99.7 % of a million is not all of it
    if 0 < size < 0.001:
        text = "<0.001" if share > 0 else "-0.001"
    elif size < 1:
        text = f"{of_hundred:.2g}"
    elif size < 10 or 99 < size < 100:
        text = f"{of_hundred:.1f}"
    else:
        text = f"{of_hundred:.0f}"
    return f"{text}{THIN}%" if unit else text


def decimal(number: float | None, digits: int = 3) -> str:
    if number is None or not math.isfinite(number):
        return NONE
    return f"{number:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")
