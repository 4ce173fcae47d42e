"""What is measured: for each scenario what one round of it gives, and what is wanted of it.

Every round takes fresh processes, so every cache is empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.bench.alone import measured
from worker.bench.image_server import image_server
from worker.bench.latency import curve
from worker.bench.service import NOOP_WORKER, Flood, flood, standing

KILOBYTES = 50
_SIZES = {20: 300, 50: 200, 200: 60, 1000: 15}  # of photos, and how many of them are decoded

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setup:
    """``environment`` are the settings that every process is given; ``policy`` and ``plain`` are
    files: what decides, and what decides where there is no model. ``quick``: a few of each, to see
    that it works."""

    environment: Mapping[str, str]
    policy: Path
    plain: Path
    quick: bool = False
    images: int = 800
    """That the model takes in a round; fewer will do for one that is slow."""

    def of(self, few: int, many: int) -> int:
        return few if self.quick else many


#: Makes one round; it is given what the scenarios before it found in this round.
Once = Callable[[Setup, Mapping[str, Figures]], Figures]


@dataclass(frozen=True, slots=True)
class Scenario:
    once: Once
    wanted: Mapping[str, str] = field(default_factory=dict)
    after: str | None = None
    """The scenario that it is compared with in the same round."""
    of_model: bool = True
    """Whether the model has a part in it."""


def _model(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    return measured("alone", "model", setup.of(64, setup.images), environment=setup.environment)


def _decode(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    found: Figures = {}
    for size, images in _SIZES.items():
        images = setup.of(2, images)
        found |= measured("alone", "decoding", size, images, environment=setup.environment)
    return found


def _fetch(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    with image_server(100, kilobytes=KILOBYTES) as port:
        allowed = {**setup.environment, "IMAGEWARDEN_FETCH__ALLOW": f"127.0.0.1:{port}"}
        return measured("alone", "fetching", port, setup.of(200, 4000), environment=allowed)


def _noop(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    images = range(setup.of(100, 2000))
    environment = without_model(setup.environment)
    with standing(setup.plain, kilobytes=KILOBYTES) as on:
        found = flood(on, images, environment=environment, command=NOOP_WORKER)
    return {"images/s": found.per_second, **_costs(found)}


def without_model(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if "_MODEL__" not in name}


def _end_to_end(setup: Setup, before: Mapping[str, Figures]) -> Figures:
    images = range(setup.of(80, setup.images))
    with standing(setup.policy, kilobytes=KILOBYTES) as on:
        found = flood(on, images, environment=setup.environment)
    return {
        "images/s": found.per_second,
        "of model alone": found.per_second / before["model"]["images/s"],
        **_costs(found),
        "MiB resident": sum(found.resident_mib.values()),
        "s to ready": found.ready_seconds,
    }


def _costs(found: Flood) -> Figures:
    own = found.core_ms["worker"] + found.core_ms["decoders"]
    return {
        "core-ms/image": own,
        **{f"core-ms/image, {kind}": cost for kind, cost in found.core_ms.items()},
        **{f"MiB resident, {kind}": size for kind, size in found.resident_mib.items()},
    }


def _cached(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    """Each image is asked for once, and then all of them again and again."""
    images, asked = 50, setup.of(500, 15_000)
    again = [number % images for number in range(asked)]
    random.Random(0).shuffle(again)
    with standing(setup.policy, images=images, kilobytes=KILOBYTES) as on:
        found = flood(on, [*range(images), *again], environment=setup.environment)
    costs = {f"core-ms/verdict, {kind}": cost for kind, cost in found.core_ms.items()}
    return {"verdicts/s": found.per_second, **costs}


def _redecide(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    return measured("redecide", setup.of(500, 20_000), environment=setup.environment)


def _reload(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    counts = (10, 20, 1) if setup.quick else (200, 600, 3)
    return measured("reload", *counts, environment=setup.environment)


def _latency(setup: Setup, _: Mapping[str, Figures]) -> Figures:
    with standing(setup.policy, kilobytes=KILOBYTES) as on:
        found = curve(
            on,
            peak_images=setup.of(60, 500),
            seconds=setup.of(1, 8),
            environment=setup.environment,
        )
    added = measured("alone", "batching", setup.of(20, 300), environment=setup.environment)
    return found | added


SCENARIOS: Mapping[str, Scenario] = {
    "model": Scenario(_model),
    "end-to-end": Scenario(
        _end_to_end,
        after="model",
    ),
    "no-op": Scenario(_noop, {"images/s": "≥ 250", "core-ms/image": "< 6"}, of_model=False),
    "cached": Scenario(_cached, {"verdicts/s": "≥ 2500"}),
    "decode": Scenario(_decode, of_model=False),
    "fetch": Scenario(_fetch, of_model=False),
    "redecide": Scenario(_redecide, of_model=False),
    "reload": Scenario(_reload, of_model=False),
    "latency": Scenario(_latency, {"ms added by batching, p99": "< 15"}),
}
