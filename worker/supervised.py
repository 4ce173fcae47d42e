"""Worker processes under one supervisor: what each says of itself, made one answer of all.

Each serves its own metrics and probes on a socket that only its supervisor knows, as any worker
does; here they are asked and put together. Metrics keep apart by a label ``process``, so that none
is lost: prometheus_client's own way, files that processes share, knows no infos and cannot forget a
label, such as a partition that went to another process.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from worker.endpoints import Health
from worker.telemetry import PROCESS_RESTARTS, PROCESSES, REGISTRY

T = TypeVar("T")

_ANSWER_SECONDS = 5.0
_START_SECONDS = 60.0  # imports take two, on a busy machine or a cold disk many times that
_OPENMETRICS = "application/openmetrics-text; version=1.0.0"  # which tells all types apart


@dataclass
class Place:
    """Where one process runs after another. ``absent`` says why none does, and is None while one
    does; ``started_at`` and ``ready_at`` are that one's, on the monotonic clock."""

    number: int
    socket: Path
    absent: str | None = "waits for process 0 to be ready"
    started_at: float = 0.0
    ready_at: float | None = None


def ask(place: Place, path: str) -> tuple[int, str]:
    """Status and text of what the process serves there. Raises ``OSError`` and
    ``http.client.HTTPException``."""
    connection = _LocalConnection(place.socket)
    try:
        connection.request("GET", path, headers={"Accept": _OPENMETRICS})
        response = connection.getresponse()
        return response.status, response.read().decode().strip()
    finally:
        connection.close()


def is_ready(place: Place) -> Health:
    """What its ``/readyz`` says."""
    if place.absent is not None:
        return Health(False, place.absent)
    try:
        status, text = ask(place, "/readyz")
    except (OSError, http.client.HTTPException):
        return Health(False, "does not answer")
    return Health(status == 200, text)


def is_live(place: Place) -> Health:
    """What its ``/livez`` says. One that died is not: it is started again, and to restart those
    that run would mend nothing."""
    if place.absent is not None:
        return Health(True, place.absent)
    try:
        status, text = ask(place, "/livez")
    except (OSError, http.client.HTTPException):
        starting = time.monotonic() - place.started_at < _START_SECONDS
        return Health(starting, "starting" if starting else "does not answer")
    return Health(status == 200, text)


def all_live(places: Sequence[Place]) -> Health:
    """Well while each is."""
    answers = _of_each(places, is_live)
    return Health(all(each.well for each in answers), _told(places, answers, "live"))


def one_ready(places: Sequence[Place]) -> Health:
    """Well while one is: it reads all partitions if it must, so requests are answered."""
    answers = _of_each(places, is_ready)
    return Health(any(each.well for each in answers), _told(places, answers, "ready"))


def metrics_of(places: Sequence[Place]) -> CollectorRegistry:
    """The metrics of all, by process, and the supervisor's own."""
    registry = CollectorRegistry()
    for collector in (_Metrics(places), PROCESSES, PROCESS_RESTARTS):
        registry.register(collector)
    return registry


class _Metrics(Collector):
    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def describe(self) -> Iterable[Metric]:
        return REGISTRY.collect()

    def collect(self) -> Iterator[Metric]:
        """One that does not answer has none this time, as one that died."""
        families: dict[str, Metric] = {}
        for place, text in zip(self._places, _of_each(self._places, _metrics), strict=True):
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels={"process": str(place.number), **sample.labels})
                    for sample in family.samples
                ]
        yield from families.values()


def _metrics(place: Place) -> str:
    if place.absent is None:
        try:
            return ask(place, "/metrics")[1] + "\n"
        except (OSError, http.client.HTTPException):
            pass
    return "# EOF\n"


def _of_each(places: Sequence[Place], question: Callable[[Place], T]) -> list[T]:
    """All are asked at once: one that is stuck holds up the answer only once."""
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(question, places))


def _told(places: Sequence[Place], answers: Sequence[Health], what: str) -> str:
    others = [
        f"process {place.number}: {answer.reason}"
        for place, answer in zip(places, answers, strict=True)
        if not answer.well or place.absent is not None
    ]
    well = sum(answer.well for answer in answers)
    return "; ".join([f"{well} of {len(places)} processes are {what}", *others])


class _LocalConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_SECONDS)
        self.sock.connect(str(self._path))
