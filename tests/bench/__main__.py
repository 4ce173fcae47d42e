"""Everything that this project wants of its speed, in one report: ``python -m tests.bench``.

The same scenarios as ``imagewarden bench``, with each model and engine in turn: pocket, and
ViT-B-32 with random weights, for a model of a common size. Then others at the same work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from tests.bench.peers.comparison import PHOTOS, compare
from tests.bench.peers.contenders import CONTENDERS
from worker.bench.measure import measure, report_of, set_up, warn_of_worse
from worker.bench.report import markdown
from worker.bench.results import Result, write_report
from worker.bench.scenarios import SCENARIOS
from worker.bench.weights import bench_folder, random_checkpoint
from worker.command_line import by_hand

_POLICY = Path(__file__).resolve().parents[2] / "policies" / "pocket.yaml"
_WITH_MODEL = ("model", "end-to-end")


@dataclass(frozen=True)
class Variant:
    """``wanted`` stands in for what a scenario wants by itself."""

    model: str
    engine: str
    scenarios: tuple[str, ...] = _WITH_MODEL
    images: int = 800
    wanted: Mapping[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant("pocket", "torch", tuple(SCENARIOS), wanted={"of model alone": "≥ 0.8"}),
    Variant("pocket", "onnx"),
    Variant("ViT-B-32", "torch", images=200, wanted={"of model alone": "≥ 0.92"}),
    Variant("ViT-B-32", "onnx", images=200),
)


def measured(variant: Variant, rounds: int, *, quick: bool) -> list[Result]:
    if variant.engine == "onnx" and not (find_spec("onnxruntime") and find_spec("onnxscript")):
        conditions = {"model": variant.model, "engine": variant.engine}
        why = "the extra onnx is not installed"
        return [Result(name, conditions, {}, failed=why) for name in variant.scenarios]
    model = {"name": variant.model, "engine": variant.engine}
    policy: Path | None = _POLICY
    if variant.model != "pocket":
        checkpoint = random_checkpoint(variant.model, bench_folder())
        model |= {"name": f"{variant.model}-random", "checkpoint": str(checkpoint)}
        model |= {"config": variant.model}
        policy = None

    def say(told: str) -> None:
        _say(f"{variant.model} on {variant.engine}, {told}")

    with set_up(by_hand(model=model), policy, quick=quick, images=variant.images) as setup:
        results = measure(setup, variant.scenarios, 1 if quick else rounds, say)
    own = {"MiB resident": "≤ 1229", "s to ready": "< 8"} if variant.model == "pocket" else {}
    wanted = {"end-to-end": {**variant.wanted, **own}}
    return [
        replace(result, wanted=wanted.get(result.scenario, result.wanted)) for result in results
    ]


def _say(told: str) -> None:
    print(told, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that all works; no figures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="the service alone")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the figures; of what is worse than in the report there, a warning",
    )
    asked = parser.parse_args()
    results: list[Result] = []
    for variant in VARIANTS:
        results += measured(variant, asked.rounds, quick=asked.quick)
        if asked.json and not asked.quick:  # half an hour is long enough to be interrupted
            write_report(report_of(results), asked.json.with_suffix(".partial"))
    if asked.quick:
        print(f"{len(results)} work; what they found in a moment is no measurement")
        return
    if not asked.no_peers:
        results += compare(CONTENDERS, asked.rounds, PHOTOS, _say)
    report = report_of(results)
    if asked.json:
        warn_of_worse(report, asked.json)
        write_report(report, asked.json)
        asked.json.with_suffix(".partial").unlink()
    print(markdown(report), end="")


if __name__ == "__main__":
    main()
