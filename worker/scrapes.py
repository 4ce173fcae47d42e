"""What metrics say between two looks at them. Pure.

Each look may be at a whole fleet: everything is added up over endpoints and over the labels that
are not asked for, ``process`` among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one endpoint said, ``at`` a time in seconds."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]


class Pair(NamedTuple):
    """Of one endpoint, one after the other."""

    before: Scrape
    after: Scrape


def parse_scrape(text: str, at: float) -> Scrape:
    """Prometheus' text format. Raises ``ValueError`` where it is none."""
    samples: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(at, samples)


class Change:
    """What became of a fleet from one look to the next. Absent series are None, never 0."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def rate(self, counter: str, **labels: str) -> float | None:
        """A second. One that became smaller began anew in between, and so did one that is new."""
        rates = [
            (value if value < was else value - was) / seconds
            for value, was, seconds, _ in self._series(counter, labels)
        ]
        return math.fsum(rates) if rates else None

    def rates(self, counter: str, label: str, **labels: str) -> dict[str, float]:
        """A second, by the values of a label."""
        told = {dict(each).get(label, "") for *_, each in self._series(counter, labels)}
        return {value: self.rate(counter, **{**labels, label: value}) or 0.0 for value in told}

    def value(self, gauge: str, **labels: str) -> float | None:
        """As it is now, added up."""
        values = [value for value, *_ in self._series(gauge, labels)]
        return math.fsum(values) if values else None

    def values(self, gauge: str, label: str) -> dict[str, float]:
        """As they are now, by the values of a label."""
        return {
            value: self.value(gauge, **{label: value}) or 0.0 for value in self.names(gauge, label)
        }

    def growth(self, gauge: str) -> float | None:
        """A second, of all of it; negative where it became less."""
        if self.value(gauge) is None:
            return None
        return math.fsum(
            (_total(after, gauge) - _total(before, gauge)) / _seconds(before, after)
            for before, after in self._pairs
        )

    def largest(self, gauge: str, **labels: str) -> float | None:
        return max((value for value, *_ in self._series(gauge, labels)), default=None)

    def least(self, gauge: str, **labels: str) -> float | None:
        return min((value for value, *_ in self._series(gauge, labels)), default=None)

    def names(self, gauge: str, label: str) -> set[str]:
        """The values that a label has."""
        return {dict(each).get(label, "") for *_, each in self._series(gauge, {})}

    def count(self, name: str) -> int:
        """Of its series."""
        return sum(1 for _ in self._series(name, {}))

    def mean(self, histogram: str, **labels: str) -> float | None:
        """Of what was observed in between; None where nothing was."""
        total = self.rate(f"{histogram}_sum", **labels)
        count = self.rate(f"{histogram}_count", **labels)
        return total / count if total is not None and count else None

    def quantile(self, share: float, histogram: str) -> float | None:
        """Of what was observed in between: inside its bucket as if evenly spread, and the last
        bound for what lies beyond it. None where nothing was observed."""
        buckets = sorted(
            (float(bound), rate) for bound, rate in self.rates(f"{histogram}_bucket", "le").items()
        )
        if not buckets or buckets[-1][1] <= 0:
            return None
        wanted = share * buckets[-1][1]
        below, seen = 0.0, 0.0
        for bound, upto in buckets:
            if upto >= wanted and upto > seen:
                if math.isinf(bound):
                    return below
                return below + (bound - below) * (wanted - seen) / (upto - seen)
            below, seen = bound, max(seen, upto)
        return None

    def _series(
        self, name: str, labels: Mapping[str, str]
    ) -> Iterator[tuple[float, float, float, Labels]]:
        """Value now and then (0 for a new one), the seconds in between, and all labels."""
        for before, after in self._pairs:
            then = before.samples.get(name, {})
            for each, value in after.samples.get(name, {}).items():
                if labels.items() <= each:
                    yield value, then.get(each, 0.0), _seconds(before, after), each


def _seconds(before: Scrape, after: Scrape) -> float:
    return max(after.at - before.at, 1e-9)


def _total(scrape: Scrape, name: str) -> float:
    return math.fsum(scrape.samples.get(name, {}).values())
