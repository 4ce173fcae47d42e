"""A day of a fleet: what comes is answered or waits, and what is assumed shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from worker.bench.results import Figure, Report, Result, write_report
from worker.cli import cli
from worker.planning import DAY_SECONDS, Rates
from worker.simulation import (
    STEP_SECONDS,
    Arrivals,
    Day,
    Machine,
    Repeats,
    Scaling,
    fixed_fleet,
    simulate,
)

RATES = Rates("ViT-L-14", 800, "GPU", core_ms=8, process_per_second=300, cached_per_second=1000)
STEADY = Arrivals(86_400_000, swing=0, bursts=0, noise=0)  # 1,000 a second
NO_REPEATS = Repeats(share=0)

arrivals = st.builds(
    Arrivals,
    images_per_day=st.floats(1e4, 1e10),
    swing=st.floats(0, 1),
    bursts=st.integers(0, 20),
    burst_factor=st.floats(0, 5),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
repeats = st.builds(
    Repeats,
    share=st.floats(0, 1),
    longest_days=st.floats(0.1, 365),
    url_seconds=st.floats(0, 1e6),
    embedding_days=st.floats(0, 365),
)
scalings = st.builds(
    Scaling,
    least=st.integers(1, 10),
    most=st.integers(10, 200),
    lag_seconds=st.floats(1, 300),
    busy=st.sampled_from([0.0, 0.5, 0.9]),
    start_seconds=st.floats(0, 600),
    patience_seconds=st.floats(0, 900),
)


def of(machines: int) -> Scaling:
    return Scaling(least=machines, most=machines)


def answered(day: Day) -> float:
    """In the whole day."""
    return float(day.arrivals.sum() * STEP_SECONDS - day.lag[-1])


@given(arrivals)
def test_a_day_has_as_many_requests_as_it_was_asked_for(arrivals: Arrivals) -> None:
    rates = arrivals.per_second()
    assert (rates >= 0).all()
    assert rates.mean() * DAY_SECONDS == pytest.approx(arrivals.images_per_day)


@given(repeats)
def test_what_is_remembered_is_a_part_of_what_is_asked_again(repeats: Repeats) -> None:
    assert repeats.cached >= 0
    assert repeats.known >= -1e-12
    assert repeats.cached + repeats.known <= repeats.share + 1e-12


def test_without_a_cache_nothing_is_remembered() -> None:
    nothing = Repeats(share=1).without_cache()
    assert (nothing.cached, nothing.known) == (0, 0)


@given(arrivals, repeats, scalings)
def test_no_step_answers_more_than_its_machines_can_or_than_there_is(
    arrivals: Arrivals, repeats: Repeats, scaling: Scaling
) -> None:
    machine = Machine()
    day = simulate(arrivals, repeats, machine, RATES, scaling)
    _, per_machine = machine.limit(repeats, RATES)
    before = np.concatenate([[0.0], day.lag[:-1]])
    done = before + day.arrivals * STEP_SECONDS - day.lag
    assert (done >= -1e-6 * day.arrivals.max()).all()
    most = day.machines * per_machine * STEP_SECONDS
    assert (done <= most * (1 + 1e-9) + 1e-6).all()
    assert ((day.machines >= scaling.least) & (day.machines <= scaling.most)).all()


@given(arrivals, st.integers(1, 60))
def test_one_machine_more_never_makes_anybody_wait_longer(
    arrivals: Arrivals, machines: int
) -> None:
    fewer, more = (
        simulate(arrivals, NO_REPEATS, Machine(), RATES, of(count))
        for count in (machines, machines + 1)
    )
    assert (more.lag <= fewer.lag + 1e-6 * arrivals.images_per_day).all()
    assert answered(more) >= answered(fewer) - 1e-6 * arrivals.images_per_day


def test_the_backlog_grows_by_what_is_beyond_the_machines() -> None:
    day = simulate(STEADY, NO_REPEATS, Machine(), RATES, of(1))
    assert day.lag[-1] == pytest.approx((1000 - 800) * DAY_SECONDS)
    assert day.limit == "model"


def test_who_comes_behind_a_backlog_waits_until_it_is_answered() -> None:
    day = simulate(STEADY, NO_REPEATS, Machine(), RATES, of(1))
    # what came in the first hour is answered at 800 a second
    hour = round(3600 / STEP_SECONDS) - 1
    assert day.waits[hour] == pytest.approx(3600 * 1000 / 800 - 3600)
    assert day.waits[-1] == pytest.approx(DAY_SECONDS * (1000 / 800 - 1))


def test_waits_are_weighed_by_requests() -> None:
    day = Day(
        arrivals=np.array([98.0, 1.0, 1.0]),
        lag=np.zeros(3),
        waits=np.array([1.0, 5.0, 9.0]),
        machines=np.ones(3),
        limit="model",
    )
    assert [day.wait_percentile(share) for share in (0.5, 0.98, 0.985, 1.0)] == [1, 1, 5, 9]


@pytest.mark.parametrize(
    ("changed", "limit"),
    [
        ({"cores": 1}, "cores"),
        ({"processes": 1, "cores": 64}, "processes"),
        ({"fetch_seconds": 30.0}, "downloads"),
        ({}, "model"),
    ],
)
def test_what_a_machine_has_least_of_limits_it(changed: dict[str, float], limit: str) -> None:
    assert replace(Machine(), **changed).limit(NO_REPEATS, RATES)[0] == limit  # type: ignore[arg-type]


def test_a_model_on_cores_takes_them_from_everything_else() -> None:
    cores = replace(RATES, model_per_second=20, model_runs_on="core")
    limit, rate = Machine(cores=16).limit(NO_REPEATS, cores)
    assert (limit, rate) == ("cores", pytest.approx(16 / (0.008 + 1 / 20)))


def test_a_fixed_fleet_has_headroom_in_the_busiest_hour() -> None:
    assert fixed_fleet(STEADY, per_machine=800, busy=0.5) == of(3)  # 1,000 / 800 / 0.5


def test_a_machine_works_only_after_it_has_started() -> None:
    surge = replace(STEADY, bursts=1, burst_factor=5, seed=3)
    slow, fast = (
        simulate(surge, NO_REPEATS, Machine(), RATES, Scaling(start_seconds=seconds))
        for seconds in (600, 0)
    )
    assert slow.waits.max() > fast.waits.max() + 60


@pytest.mark.parametrize("busy", [0.0, 0.7])
def test_a_day_begins_with_the_machines_that_it_needs_and_keeps_them_for_the_patience(
    busy: float,
) -> None:
    scaling = Scaling(least=1, busy=busy, patience_seconds=300)
    day = simulate(
        replace(STEADY, images_per_day=864_000_000), NO_REPEATS, Machine(), RATES, scaling
    )
    assert (day.machines[: round(300 / STEP_SECONDS)] >= 10_000 / 800).all()


def test_scaling_by_the_lag_alone_needs_a_lag() -> None:
    by_lag, by_rate = (
        simulate(STEADY, NO_REPEATS, Machine(), RATES, Scaling(1, busy=busy)) for busy in (0.0, 0.7)
    )
    assert by_rate.wait_percentile(0.99) < 1 < by_lag.wait_percentile(0.99)


def test_the_command_compares_six_fleets_and_writes_a_page(tmp_path: Path) -> None:
    figures = {
        "images/s": Figure("images/s", (300.0,)),
        "core-ms/image, worker": Figure("core-ms/image", (8.0,)),
    }
    cached = {"verdicts/s": Figure("verdicts/s", (1000.0,))}
    results = (Result("no-op", {}, figures), Result("cached", {}, cached))
    write_report(Report("2026-11-21T12:00:00+00:00", {}, results), tmp_path / "rates.json")
    page = tmp_path / "day.html"
    arguments = ["--rates", str(tmp_path / "rates.json"), "--model-rate", "800", "--seed", "1"]
    done = CliRunner().invoke(cli, ["simulate", *arguments, "--html", str(page)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["cache"], line["fleet"]) for line in lines] == [
        (cache, fleet)
        for cache in ("yes", "no")
        for fleet in ("fixed", "by lag", "by lag and rate")
    ]
    with_cache, without = lines[0], lines[3]
    assert with_cache["cost"] < without["cost"]
    assert page.read_text().count("<svg") == 3


def test_every_rate_can_be_given_in_place_of_a_report() -> None:
    rates = ["--model-rate", "800", "--core-ms", "8", "--process-rate", "150"]
    done = CliRunner().invoke(cli, ["simulate", *rates, "--cached-rate", "500"])
    assert done.exit_code == 0, done.output


def test_a_rate_that_nobody_measured_is_asked_for(tmp_path: Path) -> None:
    write_report(Report("2026-11-21T12:00:00+00:00", {}, ()), tmp_path / "rates.json")
    done = CliRunner().invoke(cli, ["simulate", "--rates", str(tmp_path / "rates.json")])
    assert done.exit_code == 2
    assert "--model-rate" in done.stderr
