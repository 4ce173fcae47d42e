"""Texts of a certain form in a YAML file; whatever has another form is refused where it stands."""

from __future__ import annotations

import re
from datetime import date
from typing import Final

from worker.yaml_values import Located

LABEL: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def label(at: Located) -> str:
    """The name of something; "" where it is absent or refused."""
    if (text := at.text()) and (len(text) > 64 or not LABEL.fullmatch(text)):
        at.refuse(
            f"{at.name} is {text[:80]!r}; write at most 64 letters and digits, in parts joined by "
            f"`.`, `_` or `-`"
        )
    return text


def digest(at: Located) -> str:
    if (text := at.text()) and not DIGEST.fullmatch(text):
        at.refuse(f'{at.name} is {text[:80]!r}; write "sha256:" and 64 hexadecimal digits')
    return text


def day(at: Located) -> date | None:
    """None where it is absent or refused."""
    if isinstance(at.value, date):  # so YAML reads one without quotes, and one with a time of day
        return date(at.value.year, at.value.month, at.value.day)
    if not (text := at.text()):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        at.refuse(f"{at.name} is {text[:80]!r}; write a date as YYYY-MM-DD")
        return None


def duration(at: Located, low: str, high: str) -> float | None:
    """Seconds, from ``low`` to ``high``, which are durations too; None where it is absent or
    refused."""
    if not at.present:
        return None
    written = str(at.value).strip() if isinstance(at.value, str | int) else ""
    seconds = _seconds(written)
    if not _seconds(low) <= seconds <= _seconds(high):
        shown = f"is {written[:80]!r}" if written else "is no duration"
        at.refuse(f"{at.name} {shown}; write a duration such as 90s, 10m or 1h, {low} to {high}")
        return None
    return float(seconds)


def _seconds(written: str) -> int:
    """0 for what is no duration."""
    found = DURATION.fullmatch(written)
    return int(found[1]) * SECONDS[found[2]] if found else 0
