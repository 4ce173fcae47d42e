"""The command line of planning for a load, and of trying a day of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.command_line import Formats, reported
from worker.commands.render import chosen

ModelRate = Annotated[
    float | None,
    typer.Option(min=0.001, help="Images/s of the model on one GPU.", show_default=False),
]
CoreMs = Annotated[
    float | None,
    typer.Option(min=0, help="Cores' ms for an image without the model.", show_default=False),
]
ProcessRate = Annotated[
    float | None,
    typer.Option(min=0.001, help="Images/s of a process without model.", show_default=False),
]
CachedRate = Annotated[
    float | None,
    typer.Option(min=0.001, help="Cached verdicts/s of a process.", show_default=False),
]


def plan(
    images_per_day: Annotated[
        float | None, typer.Option(min=0, help="Images a day.", show_default=False)
    ] = None,
    peak_rate: Annotated[
        float | None,
        typer.Option(
            min=0, help="In place of it: images a second at the peak.", show_default=False
        ),
    ] = None,
    peak_factor: Annotated[float, typer.Option(min=1, help="The peak over the mean.")] = 3.0,
    cached: Annotated[
        float, typer.Option(min=0, max=1, help="Share whose URL was seen a moment ago.")
    ] = 0.0,
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Share that is downloaded, and is known already.")
    ] = 0.0,
    image_kb: Annotated[float, typer.Option(min=0, help="Mean size of an image, in KB.")] = 50.0,
    model: Annotated[str, typer.Option(help="As the report names it.")] = "ViT-L-14",
    dimension: Annotated[int, typer.Option(min=1, help="Of the model's embeddings.")] = 768,
    categories: Annotated[int, typer.Option(min=0, help="Of the policy: verdicts list them.")] = 12,
    headroom: Annotated[
        float, typer.Option(min=0.01, max=1, help="How busy what is planned may be at the peak.")
    ] = 0.7,
    retention_days: Annotated[float, typer.Option(min=0, help="Of the topics.")] = 30.0,
    replicas: Annotated[int, typer.Option(min=1, help="Of the topics.")] = 3,
    redis_days: Annotated[
        float, typer.Option(min=0, help="How long embeddings are cached.")
    ] = 30.0,
    rates: Annotated[
        Path | None,
        typer.Option(help="Report of `imagewarden bench --json`; by itself, the one shipped."),
    ] = None,
    model_rate: ModelRate = None,
    model_core_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help="Or a core's ms for an image.", show_default=False),
    ] = None,
    core_ms: CoreMs = None,
    process_rate: ProcessRate = None,
    cached_rate: CachedRate = None,
    format: Formats = None,
) -> None:
    """Plan GPUs, cores, processes, partitions, Redis and topics for a load, from measured rates.

    Each line says which numbers it is made of.
    """
    from worker.commands.plan import show_plan
    from worker.planning import CATEGORY_BYTES, DAY_SECONDS, VERDICT_BYTES, Load

    if (images_per_day is None) == (peak_rate is None):
        raise typer.BadParameter("give --images-per-day or --peak-rate")
    if model_rate is not None and model_core_ms is not None:
        raise typer.BadParameter("give --model-rate (a GPU) or --model-core-ms (a core), not both")
    a_day = images_per_day if peak_rate is None else peak_rate / peak_factor * DAY_SECONDS
    load = reported(
        lambda: Load(
            images_per_day=a_day or 0.0,
            peak_factor=peak_factor,
            cached=cached,
            duplicates=duplicates,
            image_kilobytes=image_kb,
            headroom=headroom,
            retention_days=retention_days,
            replicas=replicas,
            dimension=dimension,
            redis_days=redis_days,
            verdict_bytes=VERDICT_BYTES + categories * CATEGORY_BYTES,
        )
    )
    given = _given(model_rate, core_ms, process_rate, cached_rate)
    if model_core_ms is not None:
        given |= {"model_per_second": 1000 / model_core_ms, "model_runs_on": "core"}
    reported(lambda: show_plan(load, model, rates, given, chosen(format)))


def simulate(
    images_per_day: Annotated[float, typer.Option(min=1, help="Images a day.")] = 1e9,
    swing: Annotated[
        float, typer.Option(min=0, max=1, help="How far the rate goes from its mean in a day.")
    ] = 0.5,
    bursts: Annotated[int, typer.Option(min=0, help="In the day, at random times.")] = 6,
    burst_factor: Annotated[
        float, typer.Option(min=0, help="What each adds at first, in means.")
    ] = 1.0,
    repeats: Annotated[
        float, typer.Option(min=0, max=1, help="Share that asks for an image seen before.")
    ] = 0.3,
    machine_cores: Annotated[int, typer.Option(min=1, help="Beside a machine's GPU.")] = 16,
    machine_processes: Annotated[int, typer.Option(min=1, help="Workers on a machine.")] = 4,
    places: Annotated[int, typer.Option(min=1, help="Images in work, of each of them.")] = 96,
    fetch_seconds: Annotated[float, typer.Option(min=0.001, help="A download's mean.")] = 0.15,
    machine_price: Annotated[float, typer.Option(min=0, help="Of a machine and hour.")] = 2.0,
    least: Annotated[int, typer.Option(min=1, help="Machines, when scaled.")] = 2,
    most: Annotated[int, typer.Option(min=1, help="Machines, when scaled.")] = 96,
    lag_seconds: Annotated[
        float, typer.Option(min=0.1, help="Of a machine's work in the lag for each machine.")
    ] = 30.0,
    busy: Annotated[
        float, typer.Option(min=0.01, max=1, help="How busy machines scaled by rate are.")
    ] = 0.7,
    start_seconds: Annotated[
        float, typer.Option(min=0, help="From when a machine is asked for to its first image.")
    ] = 120.0,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    model: Annotated[str, typer.Option(help="As the report names it.")] = "ViT-L-14",
    rates: Annotated[
        Path | None,
        typer.Option(help="Report of `imagewarden bench --json`; by itself, the one shipped."),
    ] = None,
    model_rate: ModelRate = None,
    core_ms: CoreMs = None,
    process_rate: ProcessRate = None,
    cached_rate: CachedRate = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page with pictures, too.")
    ] = None,
    format: Formats = None,
) -> None:
    """Try a day of a fleet: who waits how long, and what it costs, with and without the cache and
    scaling. All that it assumes is in its first table."""
    from worker.commands.simulate import show_simulation
    from worker.simulation import Arrivals, Machine, Repeats, Scaling

    given = _given(model_rate, core_ms, process_rate, cached_rate)
    arrivals = Arrivals(
        images_per_day, swing=swing, bursts=bursts, burst_factor=burst_factor, seed=seed
    )
    machine = Machine(machine_cores, machine_processes, places, fetch_seconds, machine_price)
    scaling = Scaling(
        least, max(least, most), lag_seconds=lag_seconds, busy=busy, start_seconds=start_seconds
    )
    reported(
        lambda: show_simulation(
            arrivals,
            Repeats(repeats),
            machine,
            scaling,
            model,
            rates,
            given,
            chosen(format),
            html,
        )
    )


def _given(
    model_rate: float | None,
    core_ms: float | None,
    process_rate: float | None,
    cached_rate: float | None,
) -> dict[str, float | str]:
    """Rates in place of a report's."""
    numbers = {
        "model_per_second": model_rate,
        "core_ms": core_ms,
        "process_per_second": process_rate,
        "cached_per_second": cached_rate,
    }
    given: dict[str, float | str] = {
        field: value for field, value in numbers.items() if value is not None
    }
    return given | {"model_runs_on": "GPU"} if model_rate is not None else given
