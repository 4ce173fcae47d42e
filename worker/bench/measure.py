"""Scenarios to a report: in rounds, in which each takes its turn, so that a change of the machine's
pace meets all of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from worker.bench.noop_worker import NAME, plain_policy
from worker.bench.report import worsened
from worker.bench.results import Figure, Report, Result, read_report
from worker.bench.scenarios import KILOBYTES, SCENARIOS, Figures, Setup
from worker.errors import Misconfigured
from worker.policy_yaml import load_policy
from worker.settings import PREFIX, Settings

_LIBRARIES = (
    *("imagewarden", "torch", "open_clip_torch", "onnxruntime", "numpy", "pillow", "simplejpeg"),
    *("kafka-python", "httpx", "aiohttp", "redis", "uvloop"),
)
#: Settings that a worker which is measured gets from the environment; the others are the bench's.
_HANDED_ON = tuple(
    f"{PREFIX}{section}__" for section in ("MODEL", "DECODE", "FETCH", "WORK", "CACHE")
)
_UNITS = ("core-ms/image", "core-ms/verdict", "images/s", "verdicts/s", "embeddings/s", "MiB", "ms")


@contextmanager
def set_up(
    settings: Settings, policy: Path | None, *, quick: bool, images: int = 800
) -> Iterator[Setup]:
    """``policy`` decides; without one, a policy for whatever model the settings name, or pocket.
    Raises ``Misconfigured``."""
    model = settings.model
    name = model.name or (load_policy(policy, unsolved=True).model if policy else "pocket")
    environment = {key: value for key, value in os.environ.items() if key.startswith(_HANDED_ON)}
    given = {
        "NAME": name,
        "CHECKPOINT": model.checkpoint,
        "CONFIG": model.config,
        "ENGINE": model.engine,
    }
    environment |= {f"{PREFIX}MODEL__{key}": str(value) for key, value in given.items() if value}
    with TemporaryDirectory(prefix="bench-") as folder:
        plain, own = Path(folder) / "plain.yaml", Path(folder) / "policy.yaml"
        plain.write_bytes(plain_policy(NAME))
        own.write_bytes(plain_policy(name))
        decides = policy.resolve() if policy else own
        environment[f"{PREFIX}POLICIES"] = str(decides)
        yield Setup(environment, decides, plain, quick, images)


def measure(
    setup: Setup,
    names: Sequence[str],
    rounds: int,
    say: Callable[[str], None] = lambda told: None,
) -> list[Result]:
    """Those scenarios, and those that they are compared with. Raises ``Misconfigured`` where there
    is none of that name, ``RuntimeError`` where the service answers wrongly or not at all."""
    if unknown := set(names) - SCENARIOS.keys():
        raise Misconfigured(f"no such scenario: {', '.join(unknown)}; {', '.join(SCENARIOS)}")
    wanted = set(names) | {after for name in names if (after := SCENARIOS[name].after)}
    chosen = [name for name in SCENARIOS if name in wanted]
    found: dict[str, list[Figures]] = {name: [] for name in chosen}
    for number in range(1, rounds + 1):
        this: dict[str, Figures] = {}
        for name in chosen:
            say(f"round {number} of {rounds}: {name}")
            this[name] = SCENARIOS[name].once(setup, this)
            found[name].append(this[name])
    return [_result(setup, name, found[name]) for name in chosen]


def _result(setup: Setup, name: str, rounds: Sequence[Figures]) -> Result:
    scenario = SCENARIOS[name]
    figures = {
        figure: Figure(unit_of(figure), tuple(each[figure] for each in rounds))
        for figure in rounds[0]
    }
    told = setup.environment
    model = told[f"{PREFIX}MODEL__NAME"] if scenario.of_model else "none"
    conditions = {"model": model, "photos": f"about {KILOBYTES} KB"}
    if scenario.of_model:
        conditions["engine"] = told[f"{PREFIX}MODEL__ENGINE"]
    if name in ("decode", "redecide", "reload"):
        del conditions["photos"]
    return Result(name, conditions, figures, scenario.wanted)


def unit_of(figure: str) -> str:
    """By its name: ``core-ms/image, worker`` is in ``core-ms/image``."""
    words = figure.replace(",", " ").split()
    if words[0] == "s":
        return "s"
    return next((unit for unit in _UNITS if unit in words), figure if "/s" in figure else "1")


def report_of(results: Sequence[Result]) -> Report:
    return Report(datetime.now(UTC).isoformat(timespec="seconds"), machine(), tuple(results))


def warn_of_worse(report: Report, path: Path) -> None:
    """On standard error, beside the report that is there, if any."""
    if path.is_file():
        for sentence in worsened(report, read_report(path)):
            print(f"worse: {sentence}", file=sys.stderr)  # noqa: T201 - it is the command's answer


def machine() -> Mapping[str, str]:
    """Processors, memory, versions and commit."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        **{name: found for name in _LIBRARIES if (found := _version(name))},
        "commit": _commit(),
    }


def _processor() -> str:
    with Path("/proc/cpuinfo").open() as lines:
        told = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(told, platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"
