"""Axes of charts: where values lie between two ends, and which of them are written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from worker.authoring.quantities import THIN, count


def _as_is(value: float) -> float:
    return value


@dataclass(frozen=True, slots=True)
class Axis:
    """From ``low`` to ``high``, with ticks of (value, text). ``scale`` is what is laid out evenly;
    values beyond the ends are drawn at the ends."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    scale: Callable[[float], float] = _as_is

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        low, high = self.scale(self.low), self.scale(self.high)
        inside = min(max(value, self.low), self.high)
        return (self.scale(inside) - low) / (high - low) if high > low else 0.0


def shares(label: str, high: float = 1.0) -> Axis:
    """From nothing to ``high`` or a little more, in percent; where that is nothing, to 100 %."""
    high = high or 1.0
    step = _step(high)
    last = math.ceil(high / step - 1e-9)
    return Axis(label, 0.0, last * step, _percents(i * step for i in range(last + 1)))


def shares_from_small(label: str) -> Axis:
    """From nothing to 100 %, with more room for small shares: their square roots are laid out."""
    return Axis(label, 0.0, 1.0, _percents((0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)), math.sqrt)


def counts(label: str, high: float) -> Axis:
    """From 0 to ``high`` or a little more, in whole numbers."""
    step = max(1, round(_step(max(high, 1))))
    last = math.ceil(max(high, 1) / step)
    return Axis(label, 0, last * step, [(i * step, count(i * step)) for i in range(last + 1)])


def powers(label: str, low: float) -> Axis:
    """From ``low`` to 100 %; each power of ten takes equal room."""
    decades = math.floor(-math.log10(low) + 1e-9)
    ticks = _percents(10.0**-i for i in range(decades, -1, -1))
    return Axis(label, low, 1.0, ticks, math.log10)


def log_odds(label: str, low: float = 0.001) -> Axis:
    """Probabilities from ``low`` to 1 - ``low``, with room at the ends, where it matters."""
    marks = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    ticks = _percents(p for p in marks if low <= p <= 1 - low)
    return Axis(label, low, 1 - low, ticks, lambda p: math.log(p / (1 - p)))


def _percents(shares: Iterable[float]) -> list[tuple[float, str]]:
    return [(share, f"{100 * share:.4g}{THIN}%") for share in shares]


def _step(high: float, most: int = 5) -> float:
    """1, 2 or 5 times a power of ten, so that at most ``most`` of it reach ``high``."""
    power = 10.0 ** math.floor(math.log10(high / most))
    return next(n * power for n in (1, 2, 5, 10) if high / (n * power) <= most + 1e-9)
