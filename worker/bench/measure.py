"""Scenarios to a report: in rounds, in which each takes its turn, so that a change of the machine's
pace meets all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.bench.machine import device_of, machine
from worker.bench.noop_worker import NAME, plain_policy
from worker.bench.report import worsened
from worker.bench.results import Figure, Report, Result, read_report, unit_of
from worker.bench.scenarios import KILOBYTES, SCENARIOS, Figures, Setup
from worker.errors import Misconfigured
from worker.policy_yaml import load_policy
from worker.settings import PREFIX, Settings

#: Settings that a worker which is measured gets from the environment; the others are the bench's.
_HANDED_ON = tuple(
    f"{PREFIX}{section}__" for section in ("MODEL", "DECODE", "FETCH", "WORK", "CACHE")
)


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
        "DEVICE": model.device,
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
        conditions["device"] = device_of(told[f"{PREFIX}MODEL__DEVICE"])
    if name in ("decode", "redecide", "reload"):
        del conditions["photos"]
    return Result(name, conditions, figures, scenario.wanted)


def report_of(results: Sequence[Result]) -> Report:
    return Report(datetime.now(UTC).isoformat(timespec="seconds"), machine(), tuple(results))


def warn_of_worse(report: Report, path: Path) -> None:
    """On standard error, beside the report that is there, if any."""
    if path.is_file():
        for sentence in worsened(report, read_report(path)):
            print(f"worse: {sentence}", file=sys.stderr)  # noqa: T201 - it is the command's answer
