"""Figures that were measured, as they are written to a report and read from one.

A report is JSON: when, on which machine and with which versions, and for each scenario what each
round gave. Medians and spreads are computed from the rounds, and never stored.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.errors import Misconfigured

_UNITS = ("core-ms/image", "core-ms/verdict", "images/s", "verdicts/s", "embeddings/s", "MiB", "ms")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, in ``unit`` (such as ``images/s``, ``ms``, ``core-ms/image``, ``MiB``, ``1``
    for a ratio), as each round gave it. A ratio's rounds are ratios within one round."""

    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.rounds), max(self.rounds)


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario with one set of conditions.

    ``conditions`` are what it was measured with (model, engine, images, their mean size…), as
    text. ``wanted`` gives, for some of the figures, the least (``≥ 0.8``) or the most (``< 6``)
    that the project wants of it. ``failed`` says why there are no figures: a peer that cannot be
    installed, say.
    """

    scenario: str
    conditions: Mapping[str, str]
    figures: Mapping[str, Figure]
    wanted: Mapping[str, str] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """``measured_at`` is ISO 8601 in UTC; ``machine`` names processors, memory, versions and
    commit."""

    measured_at: str
    machine: Mapping[str, str]
    results: tuple[Result, ...]


def unit_of(figure: str) -> str:
    """By its name: ``core-ms/image, worker`` is in ``core-ms/image``."""
    words = figure.replace(",", " ").split()
    if words[0] == "s":
        return "s"
    return next((unit for unit in _UNITS if unit in words), figure if "/s" in figure else "1")


_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


def read_report(path: Path) -> Report:
    """Raises ``Misconfigured``."""
    try:
        return _REPORT.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no report of a bench"
        raise Misconfigured(
            f"no figures can be read from {path}: {reason}; give a file that "
            "`imagewarden bench --json` wrote"
        ) from None


def write_report(report: Report, path: Path) -> None:
    path.write_bytes(_REPORT.dump_json(report, indent=1) + b"\n")
