"""Everything about the GPU in one report: ``python -m worker.bench.gpu`` or ``make bench-gpu``.

Needs a GPU, and no network: weights are random. Each step runs in a process of its own, with a time
limit; of one that fails the report says why, and the next one comes. The report is written anew
after every step, so that it holds what was found whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from worker.bench.gpu_steps import Step
    from worker.bench.results import Result

_MINUTES = 9.0  # in all; less than a machine is often lent for
_CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> None:
    given = _arguments()
    if absent := missing(_CHECKOUT / "pyproject.toml"):
        print(  # noqa: T201 - it is the command's answer
            f"not installed here, so what needs it is left out: {', '.join(absent)}; put wheels "
            "of them in a folder with `pip install --target` and name it in PYTHONPATH",
            file=sys.stderr,
        )
    try:
        import_module("worker.bench.report")
        from worker.bench.gpu_steps import steps
        from worker.bench.machine import device_of
    except ImportError as error:
        sys.exit(f"nothing can be measured without {error.name}")
    device = device_of(given.device)
    if device == "cpu" and given.device != "cpu":
        sys.exit("torch sees no GPU here; `--device cpu --quick` tries the command without one")
    chosen = [
        step
        for step in steps(device, quick=given.quick)
        if not given.only or step.scenario in given.only
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    measure(chosen, given.out, seconds=60 * given.minutes)
    print((given.out / "gpu.md").read_text())  # noqa: T201 - it is the command's answer


def measure(steps: Sequence[Step], out: Path, *, seconds: float) -> list[Result]:
    """One after another, into ``gpu.md`` and ``gpu.json`` in ``out``; what does not fit into the
    time is not begun."""
    from worker.bench.machine import machine
    from worker.bench.report import markdown
    from worker.bench.results import Report, write_report

    ends = time.monotonic() + seconds
    began = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    results: list[Result] = []
    for step in steps:
        left = min(step.limit_seconds, ends - time.monotonic())
        what = ", ".join([step.scenario, *step.conditions.values()])
        print(f"{what} (at most {max(0.0, left):.0f} s)", file=sys.stderr)  # noqa: T201 - progress
        results.append(run(step, left, _model_rate(results)))
        report = Report(began, machine(), tuple(results))
        write_report(report, out / "gpu.json")
        (out / "gpu.md").write_text(markdown(report))
    return results


def run(step: Step, seconds: float, model_rate: float) -> Result:
    """What the step printed: numbers, or lists of them, are figures, and texts are conditions."""
    from worker.bench.gpu_steps import MODEL_RATE
    from worker.bench.results import Figure, Result, unit_of

    if seconds <= 0:
        return Result(step.scenario, step.conditions, {}, failed="there was no time left for it")
    arguments = [argument.replace(MODEL_RATE, f"{model_rate}") for argument in step.arguments]
    command = [sys.executable, "-m", step.module, *arguments]
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as errors:
        failed = _run(command, _environment(step.environment), seconds, told, errors)
        told.seek(0)
        conditions, figures = dict(step.conditions), dict[str, Figure]()
        for name, found in _printed(told.read().decode(errors="replace")):
            if isinstance(found, str):
                conditions[name] = found
            else:
                rounds = found if isinstance(found, list) else [found]
                figures[name] = Figure(unit_of(name), tuple(rounds))
    if failed and figures:
        conditions["not finished"] = failed
        failed = None
    wanted = {name: bound for name, bound in step.wanted.items() if name in figures}
    return Result(step.scenario, conditions, figures, wanted, failed)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    told: IO[bytes],
    errors: IO[bytes],
) -> str | None:
    """Why it did not end well."""
    with subprocess.Popen(
        command, env=environment, stdout=told, stderr=errors, start_new_session=True
    ) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"it was ended after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # its children too, whose parent may be gone
                os.killpg(process.pid, signal.SIGKILL)
    if code == 0:
        return None
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return f"it ended with {code}: {lines[-1][:300]}"


def _printed(told: str) -> list[tuple[str, float | list[float] | str]]:
    found: list[tuple[str, float | list[float] | str]] = []
    for line in told.splitlines():
        with suppress(ValueError):  # a library's own words, or a line cut short
            objects = json.loads(line)
            found += objects.items() if isinstance(objects, dict) else ()
    return found


def _model_rate(results: Sequence[Result]) -> float:
    for result in results:
        if result.scenario == "model" and "images/s" in result.figures:
            return result.figures["images/s"].median
    return 0.0


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """A step runs the code that this process runs, with these settings and none from outside."""
    own = {name: value for name, value in os.environ.items() if "IMAGEWARDEN" not in name}
    paths = [str(_CHECKOUT), *filter(None, [own.get("PYTHONPATH")])]
    return {**own, "PYTHONPATH": os.pathsep.join(paths), **settings}


def missing(pyproject: Path, installed: Callable[[str], str] = version) -> list[str]:
    """Of what the checkout needs; of an installed package, pip saw to it."""
    if not pyproject.is_file():
        return []
    project = tomllib.loads(pyproject.read_text())["project"]
    absent = []
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["demo"]]:
        name = requirement
        for sign in "[<>=!~; ":
            name = name.partition(sign)[0]
        try:
            installed(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.bench.gpu", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:NUMBER, or cpu")
    parser.add_argument("--quick", action="store_true", help="a few of each, to see that it works")
    parser.add_argument("--only", action="append", metavar="SCENARIO", help="of the report; again")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="that it may take in all")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder of the report")
    return parser.parse_args()


if __name__ == "__main__":
    main()
