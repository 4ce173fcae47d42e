"""Ties what can be read off the running parts to the metrics that tell it.

It is read at each scrape, on the thread that serves it, while the parts go on: whatever is asked
here must be safe to ask at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from datetime import time as time_of_day

from worker import telemetry
from worker.collectors import Samples
from worker.pipeline import Pipeline
from worker.reload import PolicyStore
from worker.seams import Encoder
from worker.types import Load


@contextmanager
def watching_stages(loads: Callable[[], Mapping[str, Load]]) -> Iterator[None]:
    """How full each is."""

    def of(field: str) -> Callable[[], Samples]:
        return lambda: [((stage,), getattr(load, field)) for stage, load in loads().items()]

    with (
        telemetry.STAGE_BUSY.of(of("busy")),
        telemetry.STAGE_PLACES.of(of("places")),
        telemetry.STAGE_WAITING.of(of("waiting")),
    ):
        yield


@contextmanager
def watching_lane(lane: str, pipeline: Pipeline) -> Iterator[None]:
    """Its records, and how long ago it did what it is to do again and again."""

    def ago(at: Callable[[], float | None]) -> Callable[[], Samples]:
        def seconds() -> Samples:
            then = at()
            return [((lane,), 0.0 if then is None else time.monotonic() - then)]

        return seconds

    with (
        watching_stages(lambda: {f"requests_{lane}": pipeline.load}),
        telemetry.OLDEST_IN_FLIGHT.of(ago(pipeline.oldest_polled_at)),
        telemetry.POLL_AGE.of(ago(lambda: pipeline.polled_at)),
        telemetry.COMMIT_DELAY.of(ago(lambda: pipeline.committed_at)),
    ):
        yield


@contextmanager
def watching_policies(policies: PolicyStore) -> Iterator[None]:
    """How old the calibrations are that decide now, and how many categories have none."""

    def calibrated_at() -> Samples:
        for compiled in policies.all_current():
            for category, fits in zip(compiled.categories, compiled.calibrated, strict=True):
                calibration = category.calibration
                if fits and calibration and calibration.fitted_on:
                    day = datetime.combine(calibration.fitted_on, time_of_day(), UTC)
                    yield (compiled.policy.id, category.id), day.timestamp()

    def uncalibrated() -> Samples:
        for compiled in policies.all_current():
            yield (compiled.policy.id,), len(compiled.uncalibrated)

    with (
        telemetry.CALIBRATED_AT.of(calibrated_at),
        telemetry.UNCALIBRATED.of(uncalibrated),
    ):
        yield


@contextmanager
def watching_device(encoder: Encoder) -> Iterator[None]:
    """The memory of the model's device, where it has its own."""

    def of(field: str) -> Callable[[], Samples]:
        def memory() -> Samples:
            if device := encoder.device_memory():
                yield (device.device,), getattr(device, field)

        return memory

    with (
        telemetry.DEVICE_MEMORY_ALLOCATED.of(of("allocated")),
        telemetry.DEVICE_MEMORY_USED.of(of("used")),
        telemetry.DEVICE_MEMORY_SIZE.of(of("size")),
    ):
        yield
