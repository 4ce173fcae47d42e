"""Stops a worker that rejects what it reads: nearly always the topic or a release is wrong, and
going on would empty the topic into the dead letters."""

from __future__ import annotations

from collections import deque

from worker.errors import Halted


class Rejections:
    """Watches the last ``window`` records; more than ``share`` of ``window`` rejected is too much.
    Pure. A share of 1 never is."""

    def __init__(self, *, share: float, window: int) -> None:
        self._share = share
        self._limit = int(share * window)
        self._recent: deque[bool] = deque(maxlen=window)

    def count(self, *, rejected: bool) -> None:
        """One more record. Raises ``Halted``, before its dead letter is published."""
        self._recent.append(rejected)
        if rejected and sum(self._recent) > self._limit and self._share < 1:
            raise Halted(
                f"{sum(self._recent)} of the last {len(self._recent)} records were rejected, more "
                f"than {self._share:g} of {self._recent.maxlen}; the rest of the topic is left as "
                "it is. See `imagewarden dlq list` for the reasons, mend what publishes them, or "
                "raise IMAGEWARDEN_WORK__MAX_REJECTED_SHARE"
            )
