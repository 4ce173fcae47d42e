"""What prometheus_client lacks: gauges that are read when they are scraped, histograms that many
values enter at once, and labels with a bound."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]


class Reading(Collector):
    """A gauge that keeps nothing: who knows its values is asked for them at each scrape.

    They are asked on the thread that serves the scrape, while everything else goes on. One that
    fails costs its own values and a line of the log; the rest of the scrape is told.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
    ) -> None:
        self.labelnames = tuple(labelnames)
        self._name = name
        self._documentation = documentation
        self._sources: list[Callable[[], Samples]] = []
        registry.register(self)

    @contextmanager
    def of(self, source: Callable[[], Samples]) -> Iterator[None]:
        """``source`` gives the value of each of its labels until the end of the context. Of two
        that give the same labels, the later one counts."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._name, self._documentation, labels=self.labelnames)]

    def collect(self) -> list[GaugeMetricFamily]:
        families = self.describe()
        samples: dict[Labels, float] = {}
        for source in tuple(self._sources):
            try:
                samples.update(source())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not the others'
                _log.warning("metric_not_read", metric=self._name, error=repr(error))
        for labels, value in samples.items():
            families[0].add_metric(labels, value)
        return families


class Known:
    """The values of a label that strangers write: ``most`` of those that were made ``known``, and
    ``other`` for everything else."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: frozenset[str] = frozenset()

    def know(self, names: Iterable[str]) -> None:
        """From now on these, the first in the alphabet, so that all processes keep the same."""
        self._known = frozenset(sorted(names)[: self._most])

    def label(self, value: str | None) -> str:
        if value is None:
            return "none"
        return value if value in self._known else "other"


class Probabilities(Collector):
    """Histograms of probabilities, by an owner and what of it they are of.

    A prometheus_client ``Histogram`` takes 1.5 µs for a value, and there are as many values to a
    verdict as its policy has categories; here it is a tenth. From one thread only.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: tuple[str, str],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """``bounds`` ascend, and the last of them is the largest value."""
        self.labelnames = labelnames
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._le = [*map(str, self._bounds), "+Inf"]
        # how many are in each bucket, one beyond the bounds, and the sum
        self._counts: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(
            lambda: defaultdict(lambda: [0.0] * (len(self._bounds) + 2))
        )
        registry.register(self)

    def observe(self, owner: str, values: Iterable[tuple[str, float]]) -> None:
        """Of each name of ``owner``'s, its value."""
        owned = self._counts[owner]
        bounds = self._bounds
        for name, value in values:
            counts = owned[name]
            counts[bisect_left(bounds, value)] += 1
            counts[-1] += value

    def describe(self) -> list[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self.labelnames)]

    def collect(self) -> list[HistogramMetricFamily]:
        families = self.describe()
        for owner, owned in list(self._counts.items()):
            for name, counts in list(owned.items()):
                *by_bucket, total = counts
                buckets = list(zip(self._le, accumulate(by_bucket), strict=True))
                families[0].add_metric((owner, name), buckets, total)
        return families
