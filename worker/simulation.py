"""A day of a fleet, step by step: what arrives, what is answered, who waits how long, how many
machines run. Pure arithmetic on made-up arrivals; everything that is assumed is a field.

It is a fluid: at 10⁹ images a day single ones do not show, their sums do. What each request needs
of a machine follows from the same rates that ``planning`` uses.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from worker.planning import DAY_SECONDS, Rates

Series = NDArray[np.float64]

STEP_SECONDS = 10.0
_STEPS = round(DAY_SECONDS / STEP_SECONDS)
_LATELY = 60  # steps


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of a day. The rate swings with the hour by ``swing`` around its mean, lowest at
    five in the morning; ``bursts`` a day, at random times, add ``burst_factor`` times the mean and
    fade away with ``burst_minutes``; from step to step it is random, log-normal with ``noise``."""

    images_per_day: float = 1e9
    swing: float = 0.5
    bursts: int = 6
    burst_factor: float = 1.0
    burst_minutes: float = 15.0
    noise: float = 0.05
    seed: int = 0

    def per_second(self) -> Series:
        """By step."""
        chance = np.random.default_rng(self.seed)
        at = np.arange(_STEPS) * STEP_SECONDS
        shape = 1 + self.swing * np.sin(2 * math.pi * (at / DAY_SECONDS - 11 / 24))
        for start in chance.uniform(0, DAY_SECONDS, self.bursts):
            since = at - start
            fade = np.exp(-np.maximum(since, 0) / (60 * self.burst_minutes))
            shape += self.burst_factor * np.where(since >= 0, fade, 0)
        shape *= chance.lognormal(0, self.noise, _STEPS)
        rates: Series = self.images_per_day / DAY_SECONDS * shape / shape.mean()
        return rates


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often an image is asked for again, and what is remembered of it. ``share`` of the
    requests are for an image seen before; the time since then is log-uniform from a second to
    ``longest_days``. Within ``url_seconds`` nothing is downloaded, within ``embedding_days``
    nothing is embedded; 0 and 0 are no cache."""

    share: float = 0.3
    longest_days: float = 90.0
    url_seconds: float = 600.0
    embedding_days: float = 30.0

    @property
    def cached(self) -> float:
        """The share of all requests that is answered without a download."""
        return self.share * self._within(self.url_seconds)

    @property
    def known(self) -> float:
        """The share that is downloaded and not embedded."""
        within = self._within(max(self.url_seconds, self.embedding_days * DAY_SECONDS))
        return self.share * within - self.cached

    def without_cache(self) -> Repeats:
        return replace(self, url_seconds=0.0, embedding_days=0.0)

    def _within(self, seconds: float) -> float:
        longest = self.longest_days * DAY_SECONDS
        return math.log(min(max(seconds, 1.0), longest)) / math.log(longest)


@dataclass(frozen=True, slots=True)
class Machine:
    """One GPU with ``cores`` beside it, ``processes`` workers with ``places`` images in work each,
    at ``hourly_price`` in any currency. ``fetch_seconds`` is a download's mean."""

    cores: int = 16
    processes: int = 4
    places: int = 96
    fetch_seconds: float = 0.15
    hourly_price: float = 2.0

    def limits(self, repeats: Repeats, rates: Rates) -> dict[str, float]:
        """Requests a second, by what limits them."""
        fetched = 1 - repeats.cached
        embedded = fetched - repeats.known
        model = rates.model_per_second
        core_seconds = fetched * rates.core_ms / 1000 + repeats.cached / rates.cached_per_second
        if rates.model_runs_on == "core":
            core_seconds += embedded / model
        by_process = fetched / rates.process_per_second + repeats.cached / rates.cached_per_second
        found = {
            "cores": self.cores / core_seconds,
            "processes": self.processes / by_process,
        }
        if fetched:
            found["downloads"] = self.processes * self.places / self.fetch_seconds / fetched
        if rates.model_runs_on == "GPU" and embedded:
            found["model"] = model / embedded
        return found

    def limit(self, repeats: Repeats, rates: Rates) -> tuple[str, float]:
        """What limits it, and at how many requests a second."""
        return min(self.limits(repeats, rates).items(), key=lambda item: item[1])


@dataclass(frozen=True, slots=True)
class Scaling:
    """As KEDA and the autoscaler behind it do it: every ``look_seconds`` one machine for each
    ``lag_seconds`` of a machine's work in the lag, or as many as are ``busy`` with what was
    answered a second, whichever is more, and at most twice as many as there are. 0 for ``busy``
    looks at the lag alone. A machine works ``start_seconds`` after it was asked for. Fewer are
    wanted only once that held for ``patience_seconds``."""

    least: int = 2
    most: int = 96
    lag_seconds: float = 30.0
    busy: float = 0.7
    look_seconds: float = 30.0
    start_seconds: float = 120.0
    patience_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Day:
    """By step: requests a second that came, requests that wait, seconds that one which came then
    waits, machines that work; and what limits a machine."""

    arrivals: Series
    lag: Series
    waits: Series
    machines: Series
    limit: str

    @property
    def machine_hours(self) -> float:
        return float(self.machines.sum() * STEP_SECONDS / 3600)

    def wait_percentile(self, share: float) -> float:
        """Seconds, over requests and not over time."""
        order = np.argsort(self.waits)
        below = np.cumsum(self.arrivals[order]) / self.arrivals.sum()
        at = min(int(np.searchsorted(below, share)), len(order) - 1)
        return float(self.waits[order][at])


def fixed_fleet(arrivals: Arrivals, per_machine: float, busy: float = 0.7) -> Scaling:
    """So many all day that they are ``busy`` with the highest hour's mean."""
    hourly = arrivals.per_second().reshape(24, -1).mean(axis=1)
    machines = math.ceil(hourly.max() / per_machine / busy)
    return Scaling(least=machines, most=machines)


def simulate(
    arrivals: Arrivals,
    repeats: Repeats,
    machine: Machine,
    rates: Rates,
    scaling: Scaling,
) -> Day:
    limit, per_machine = machine.limit(repeats, rates)
    coming = arrivals.per_second()
    lag, machines = np.empty(_STEPS), np.empty(_STEPS)
    scaler = _Scaler(scaling, per_machine)
    waiting, answered = 0.0, coming[0]
    for step in range(_STEPS):
        working = scaler.machines(step, waiting, answered)
        there = waiting + coming[step] * STEP_SECONDS
        done = min(there, working * per_machine * STEP_SECONDS)
        waiting, answered = there - done, done / STEP_SECONDS
        lag[step], machines[step] = waiting, working
    return Day(coming, lag, _waits(coming, lag), machines, limit)


def _waits(coming: Series, lag: Series) -> Series:
    """First come, first served: whoever came in a step is answered when as many are answered as had
    come by then. What the day leaves unanswered is answered at the pace of its last ten minutes."""
    came = np.cumsum(coming) * STEP_SECONDS
    answered = came - lag
    at = np.arange(1, len(came) + 1) * STEP_SECONDS
    pace = (answered[-1] - answered[-1 - _LATELY]) / (_LATELY * STEP_SECONDS)
    over = at[-1] + np.maximum(0, came - answered[-1]) / max(pace, 1e-9)
    when = np.where(came <= answered[-1], np.interp(came, answered, at), over)
    waits: Series = np.maximum(0.0, when - at)
    return waits


class _Scaler:
    def __init__(self, scaling: Scaling, per_machine: float) -> None:
        self._scaling = scaling
        self._per_machine = per_machine
        self._asked = 0
        self._starting: deque[int] = deque()  # steps at which one more works
        self._lately: deque[int] = deque(maxlen=_steps(scaling.patience_seconds))

    def machines(self, step: int, lag: float, answered: float) -> int:
        """That work in this step, of which the lag and the rate before it are known."""
        scaling = self._scaling
        if not step:  # the day begins with what it needs, as if it had for long
            self._asked = self._bounded(math.ceil(answered / self._per_machine))
            self._lately.extend([self._asked] * _steps(scaling.patience_seconds))
        self._lately.append(self._wanted(lag, answered))
        if step % _steps(scaling.look_seconds) == 0:
            aim = min(max(self._lately), 2 * self._asked)
            if aim > self._asked:
                ready = step + _steps(scaling.start_seconds)
                self._starting.extend([ready] * (aim - self._asked))
            for _ in range(self._asked - aim):
                if self._starting:
                    self._starting.pop()
            self._asked = aim
        while self._starting and self._starting[0] <= step:
            self._starting.popleft()
        return self._asked - len(self._starting)

    def _wanted(self, lag: float, answered: float) -> int:
        by_lag = lag / self._scaling.lag_seconds
        by_rate = answered / self._scaling.busy if self._scaling.busy else 0.0
        return self._bounded(math.ceil(max(by_lag, by_rate) / self._per_machine))

    def _bounded(self, machines: int) -> int:
        return min(max(machines, self._scaling.least), self._scaling.most)


def _steps(seconds: float) -> int:
    return max(1, round(seconds / STEP_SECONDS))
