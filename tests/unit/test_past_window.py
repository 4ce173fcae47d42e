"""How far back to look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.errors import Misconfigured
from worker.past.window import Window, parse_window

NOW = datetime(2026, 11, 21, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("12h", NOW - timedelta(hours=12)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T09:30", datetime(2026, 11, 1, 9, 30, tzinfo=UTC)),
        ("2026-11-01T09:30+02:00", datetime(2026, 11, 1, 7, 30, tzinfo=UTC)),
    ],
)
def test_a_time_may_be_so_long_ago_or_a_date(text: str, since: datetime) -> None:
    assert parse_window(text, None, NOW) == Window(since)


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "yesterday", "2026-13-01", "1e9d", "9" * 30 + "w"]
)
def test_what_is_no_time_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(Misconfigured, match=r"--since .* write it as 7d"):
        parse_window(text, None, NOW)


def test_a_window_that_holds_nothing_is_refused() -> None:
    with pytest.raises(Misconfigured, match="not after --since"):
        parse_window("2d", "3d", NOW)
    with pytest.raises(Misconfigured, match="future"):
        parse_window("2027-01-01", None, NOW)


def test_a_window_has_its_beginning_and_not_its_end() -> None:
    window = parse_window("2d", "1d", NOW)
    assert NOW - timedelta(days=2) in window
    assert NOW - timedelta(days=1) not in window
