"""How far back to look: what people write for a time, and the span between two of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from worker.errors import Misconfigured

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WRITTEN = "write it as 7d, 12h or 30m ago, or as 2026-11-01 or 2026-11-01T09:30 in UTC"


@dataclass(frozen=True, slots=True)
class Window:
    """From ``since`` on and before ``until``, both with a time zone."""

    since: datetime
    until: datetime | None = None

    def __contains__(self, at: datetime) -> bool:
        return self.since <= at and (self.until is None or at < self.until)

    def __str__(self) -> str:
        until = "now" if self.until is None else f"{self.until:%Y-%m-%d %H:%M}"
        return f"{self.since:%Y-%m-%d %H:%M} to {until} UTC"


def parse_window(since: str, until: str | None, now: datetime) -> Window:
    """Raises ``Misconfigured``."""
    window = Window(
        parse_time(since, now, "--since"),
        None if until is None else parse_time(until, now, "--until"),
    )
    if window.since > now:
        raise Misconfigured(f"--since {since} lies in the future; {_WRITTEN}")
    if window.until is not None and window.until <= window.since:
        raise Misconfigured(f"--until {until} is not after --since {since}: nothing lies between")
    return window


def parse_time(text: str, now: datetime, option: str) -> datetime:
    """``7d`` (so long before ``now``) or a date, with or without a time, in ISO 8601; UTC where it
    names no zone. Raises ``Misconfigured`` in the name of ``option``."""
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Misconfigured(f"{option} {text!r} is no time; {_WRITTEN}") from None
