"""The numbers that ``imagewarden top`` shows, from metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.scrapes import Change

#: In the order that an image passes them.
STAGES = ("fetch", "decode", "embed", "publish", "score", "answer")

_PREFIX = "imagewarden_"


@dataclass(frozen=True, slots=True)
class StageNumbers:
    """``busy`` is the share of its places that was taken, ``waiting`` the images that wait for one
    now; the times are means, in seconds: for a place, and at work."""

    stage: str
    busy: float | None
    waiting: float | None
    waited_seconds: float | None
    worked_seconds: float | None

    @property
    def seconds(self) -> float:
        return (self.waited_seconds or 0.0) + (self.worked_seconds or 0.0)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rates are a second; None, or an absent key, where the metrics do not tell."""

    verdicts: float | None
    actions: Mapping[str, float]
    lag: Mapping[str, float]
    """Records, by topic."""
    lag_growth: float | None
    oldest_seconds: float | None
    cached: float | None
    """Share of the images whose embedding was known."""
    median_seconds: float | None
    p99_seconds: float | None
    stages: tuple[StageNumbers, ...]
    errors: Mapping[str, float]
    dead_letters: float | None
    warnings: tuple[str, ...]

    @property
    def slowest(self) -> StageNumbers | None:
        """Where an image spends most of its time, waiting for it included."""
        return max(
            (each for each in self.stages if each.seconds > 0),
            key=lambda each: each.seconds,
            default=None,
        )

    @property
    def fullest(self) -> StageNumbers | None:
        """The one that has the smallest share of its places left: what more load would wait for."""
        return max(
            (each for each in self.stages if each.busy is not None),
            key=lambda each: each.busy or 0.0,
            default=None,
        )


def numbers_of(change: Change) -> Numbers:
    looked_up = change.rates(f"{_PREFIX}cache_answers_total", "tier", kind="embedding")
    asked = sum(looked_up.values())
    return Numbers(
        verdicts=change.rate(f"{_PREFIX}verdicts_total"),
        actions=change.rates(f"{_PREFIX}verdicts_total", "action"),
        lag=change.values(f"{_PREFIX}consumer_lag_records", "topic"),
        lag_growth=change.growth(f"{_PREFIX}consumer_lag_records"),
        oldest_seconds=change.largest(f"{_PREFIX}oldest_in_flight_seconds", lane="live"),
        cached=1 - looked_up.get("none", 0.0) / asked if asked else None,
        median_seconds=change.quantile(0.5, f"{_PREFIX}request_duration_seconds"),
        p99_seconds=change.quantile(0.99, f"{_PREFIX}request_duration_seconds"),
        stages=tuple(_stage(change, stage) for stage in STAGES),
        errors=_positive(change.rates(f"{_PREFIX}errors_total", "code")),
        dead_letters=change.rate(f"{_PREFIX}dead_letters_total"),
        warnings=tuple(_warnings(change)),
    )


def _stage(change: Change, stage: str) -> StageNumbers:
    return StageNumbers(
        stage,
        busy=_busy(change, stage),
        waiting=change.value(f"{_PREFIX}stage_waiting_images", stage=stage),
        waited_seconds=change.mean(f"{_PREFIX}stage_wait_seconds", stage=stage),
        worked_seconds=change.mean(f"{_PREFIX}stage_duration_seconds", stage=stage),
    )


def _busy(change: Change, stage: str) -> float | None:
    """Over all the time between two looks where that is told, else at the last one."""
    if stage == "embed":
        busy = change.rate(f"{_PREFIX}model_busy_seconds_total")
        processes = change.count(f"{_PREFIX}model_busy_seconds_total")
        if busy is not None:
            return min(1.0, busy / processes)
    places = change.value(f"{_PREFIX}stage_places", stage=stage)
    if not places:
        return None
    # Little's law: what was worked on at once is the work that was done in a second
    work = change.rate(f"{_PREFIX}stage_duration_seconds_sum", stage=stage)
    taken = change.value(f"{_PREFIX}stage_busy_places", stage=stage) if work is None else work
    return None if taken is None else min(1.0, taken / places)


def _warnings(change: Change) -> Iterator[str]:
    """What an alert would be about, in a few words each."""
    if change.least(f"{_PREFIX}ready") == 0:
        ready, all_of_them = change.value(f"{_PREFIX}ready"), change.count(f"{_PREFIX}ready")
        yield f"{ready:g} of {all_of_them} ready (/readyz says why)"
    for tier in sorted(change.names(f"{_PREFIX}cache_up", "tier")):
        if change.least(f"{_PREFIX}cache_up", tier=tier) == 0:
            yield f"{tier} does not answer"
    if change.value(f"{_PREFIX}policy_stale"):
        yield "an edited policy is refused"
    if engaged := change.value(f"{_PREFIX}brakes_engaged"):
        yield f"brakes engaged: {engaged:g}"
    if hosts := change.largest(f"{_PREFIX}host_breakers_open"):
        yield f"image hosts left alone: {hosts:g}"
    if allowed := change.rate(f"{_PREFIX}fail_open_total"):
        yield f"allowed unexamined: {allowed:.2g}/s"
    if killed := change.rate(f"{_PREFIX}decoder_kills_total"):
        yield f"decoders killed: {killed:.2g}/s"


def _positive(rates: Mapping[str, float]) -> dict[str, float]:
    """The largest first."""
    some = {name: rate for name, rate in rates.items() if rate > 0}
    return dict(sorted(some.items(), key=lambda item: -item[1]))
