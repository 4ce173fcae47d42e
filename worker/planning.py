"""What a load needs, computed from what was measured: pure arithmetic, and each sum says its terms.

Sizes are those of the formats, measured: see the constants, which a test holds to the formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from worker.bench.results import Report, Result
from worker.errors import Misconfigured

DAY_SECONDS = 86_400

#: A request with a URL of 75 characters, in bytes of JSON.
REQUEST_BYTES = 190
#: Of a verdict, in bytes of JSON: 40 photos under the pocket policy with its six categories came
#: to 2,678 on average, the categories to 257 each.
VERDICT_BYTES = 1_140
CATEGORY_BYTES = 257
#: Of an embedding of one row, in bytes of JSON, besides its numbers in base64.
EMBEDDING_FACTS_BYTES = 502
#: What each record takes on a topic besides its value, by the format and not measured: the header
#: of a batch of its own (61), its own, a key.
RECORD_BYTES = 90
#: What Redis holds besides an embedding: key, seal, time to live and places in its tables. From
#: used_memory over 4,000 entries in the embedded server: 2,811 bytes for an embedding of 2,550.
REDIS_EMBEDDING_BYTES = 262
#: What Redis holds for a URL with an ETag, in the same way over 16,000 entries (without: 371).
REDIS_URL_BYTES = 402
#: How long a URL with an ETag is kept where the setting is left alone.
URL_DAYS = 1
#: A rule of thumb and not measured: what a partition may take.
PARTITION_BYTES_PER_SECOND = 10_000_000

Unit = Literal["GPU", "core"]


@dataclass(frozen=True, slots=True)
class Load:
    """``cached`` is the share of requests whose URL was seen a moment ago: nothing is downloaded.
    ``duplicates`` is the share that is downloaded and turns out to be known: nothing is embedded.
    ``headroom`` is how busy what is planned may be at the peak: 0.7 leaves three tenths."""

    images_per_day: float
    peak_factor: float = 3.0
    cached: float = 0.0
    duplicates: float = 0.0
    image_kilobytes: float = 50.0
    headroom: float = 0.7
    retention_days: float = 30.0
    replicas: int = 3
    dimension: int = 768
    redis_days: float = 30.0
    verdict_bytes: float = VERDICT_BYTES + 12 * CATEGORY_BYTES

    def __post_init__(self) -> None:
        """Raises ``Misconfigured``."""
        if self.cached + self.duplicates > 1:
            raise Misconfigured(
                f"cached {self.cached:g} and duplicates {self.duplicates:g} are more than all "
                "images; they are shares that add up to at most 1"
            )


@dataclass(frozen=True, slots=True)
class Rates:
    """What one of each does. ``model_per_second`` is of one ``model_runs_on``; ``core_ms`` an
    image's processor time in the worker and its decoders without the model;
    ``process_per_second`` what one worker process does with a model that takes no time, and
    ``cached_per_second`` what it answers from its caches."""

    model: str
    model_per_second: float
    model_runs_on: Unit
    core_ms: float
    process_per_second: float
    cached_per_second: float


@dataclass(frozen=True, slots=True)
class Line:
    """So much of something, and why."""

    what: str
    needed: float
    unit: str
    because: str


def plan(load: Load, rates: Rates) -> list[Line]:
    """Never less of anything for more images."""
    mean = load.images_per_day / DAY_SECONDS
    peak = mean * load.peak_factor
    cached = peak * load.cached
    fetched = peak - cached
    embedded = max(0.0, fetched - peak * load.duplicates)

    model = embedded / rates.model_per_second / load.headroom
    units = _whole(model)
    busy = fetched / rates.process_per_second + cached / rates.cached_per_second
    processes = max(1, _whole(busy / load.headroom))
    if rates.model_runs_on == "GPU":
        processes = max(processes, units)
    cores = (fetched * rates.core_ms / 1000 + cached / rates.cached_per_second) / load.headroom
    on = "GPUs" if rates.model_runs_on == "GPU" else "cores for the model"
    head = f"{load.headroom:g} busy"
    return [
        Line(
            "peak",
            peak,
            "images/s",
            f"{load.images_per_day:,.0f} a day, {mean:,.1f}/s on average, × {load.peak_factor:g}",
        ),
        Line(
            on,
            units,
            "",
            f"{embedded:,.1f}/s to embed ÷ {rates.model_per_second:,.1f}/s of a "
            f"{rates.model_runs_on} with {rates.model} ÷ {head}",
        ),
        Line(
            "cores outside the model",
            _whole(cores),
            "",
            f"({fetched:,.1f}/s × {rates.core_ms:.2f} ms + {cached:,.1f}/s cached × "
            f"{1000 / rates.cached_per_second:.2f} ms) ÷ {head}",
        ),
        Line(
            "worker processes",
            processes,
            "",
            f"({fetched:,.1f}/s ÷ {rates.process_per_second:,.0f}/s + {cached:,.1f}/s cached ÷ "
            f"{rates.cached_per_second:,.0f}/s) ÷ {head}; at least one"
            + (" for a GPU" if rates.model_runs_on == "GPU" else ""),
        ),
        Line(
            "partitions",
            _partitions(processes, peak * max(_topics(load).values())),
            "",
            f"twice {processes} processes, so that they can double; or what "
            f"{PARTITION_BYTES_PER_SECOND / 1e6:g} MB/s a partition comes to",
        ),
        Line(
            "network in",
            fetched * load.image_kilobytes / 1000,
            "MB/s",
            f"{fetched:,.1f}/s × {load.image_kilobytes:g} KB at the peak",
        ),
        _redis(load),
        *_storage(load),
    ]


def rates_of(report: Report, model: str) -> dict[str, float | str]:
    """What of ``Rates`` the report has, by field. Scenarios that it lacks, or that failed, are
    left out; of several of one kind the last counts."""
    found: dict[str, float | str] = {}
    for result in report.results:
        if result.failed is not None:
            continue
        if result.scenario == "model" and result.conditions.get("model") == model:
            found |= _of_model(result, report)
        elif result.scenario == "no-op":
            parts = [
                result.figures[name].median
                for kind in ("worker", "decoders")
                if (name := f"core-ms/image, {kind}") in result.figures
            ]
            found |= _median(result, "images/s", "process_per_second")
            found |= {"core_ms": sum(parts)} if parts else {}
        elif result.scenario == "cached":
            found |= _median(result, "verdicts/s", "cached_per_second")
    return found


def embedding_bytes(dimension: int) -> int:
    """Of an embedding of one row: float16 in base64, and its facts."""
    return EMBEDDING_FACTS_BYTES + 4 * math.ceil(2 * dimension / 3)


def _of_model(result: Result, report: Report) -> dict[str, float | str]:
    found = _median(result, "images/s", "model_per_second")
    if not found:
        return {}
    if result.conditions.get("device", "cpu").startswith("cuda"):
        return {**found, "model_runs_on": "GPU"}
    told = report.machine.get("processors", "").split()  # as in: 2 × AMD EPYC
    cores = int(told[0]) if told and told[0].isdecimal() else 1
    return {
        "model_per_second": result.figures["images/s"].median / max(1, cores),
        "model_runs_on": "core",
    }


def _median(result: Result, figure: str, field: str) -> dict[str, float | str]:
    return {field: result.figures[figure].median} if figure in result.figures else {}


def _topics(load: Load) -> dict[str, float]:
    """Bytes on each topic for one image, before compression."""
    unseen = 1 - load.cached - load.duplicates
    return {
        "requests": REQUEST_BYTES + RECORD_BYTES,
        "verdicts": load.verdict_bytes + RECORD_BYTES,
        "embeddings": max(0.0, unseen) * (embedding_bytes(load.dimension) + RECORD_BYTES),
    }


def _partitions(processes: int, bytes_per_second: float) -> int:
    return max(2 * processes, _whole(bytes_per_second / PARTITION_BYTES_PER_SECOND))


def _redis(load: Load) -> Line:
    unseen = max(0.0, load.images_per_day * (1 - load.cached - load.duplicates))
    urls = load.images_per_day * (1 - load.cached)
    entry = embedding_bytes(load.dimension) + REDIS_EMBEDDING_BYTES
    total = unseen * load.redis_days * entry + urls * URL_DAYS * REDIS_URL_BYTES
    return Line(
        "Redis memory",
        total / 1e9,
        "GB",
        f"{unseen:,.0f} embeddings a day × {load.redis_days:g} days × {entry:,} bytes + "
        f"{urls:,.0f} URLs × {REDIS_URL_BYTES} bytes",
    )


def _storage(load: Load) -> list[Line]:
    lines = []
    for topic, size in _topics(load).items():
        kept = load.images_per_day * size * load.retention_days * load.replicas
        why = (
            f"{load.images_per_day:,.0f} a day × {size:,.0f} bytes × {load.retention_days:g} days "
            f"× {load.replicas} replicas, before compression"
        )
        lines.append(Line(f"topic {topic}", kept / 1e9, "GB", why))
    a_day = load.images_per_day * sum(_topics(load).values()) * load.replicas / 1e9
    why = f"{a_day:,.3g} GB a day × {load.retention_days:g} days"
    return [*lines, Line("topics in all", a_day * load.retention_days, "GB", why)]


def _whole(number: float) -> int:
    # What only rounding puts over a whole number needs no more of it
    return math.ceil(number - 1e-9)
