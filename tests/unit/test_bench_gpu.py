"""The report about a GPU, on a machine without one: what fails is told, and the rest goes on."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import open_clip
import psutil
import pytest
import torch

from tests.unit.test_embed import TINY
from worker.bench import gpu, gpu_model
from worker.bench.gpu_steps import MODEL_RATE, Step, steps
from worker.bench.machine import device_of
from worker.bench.results import read_report
from worker.planning import rates_of

CONDITIONS = {"model": "ViT-L-14", "device": "cuda"}

Stepping = Callable[..., Step]


@pytest.fixture
def stepping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stepping:
    """Steps that run Python code in place of a module of ours."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def step(scenario: str, code: str, *arguments: str, limit: float = 60.0) -> Step:
        (tmp_path / f"step_{scenario}.py").write_text(code)
        wanted = {"images/s": "≥ 4000"}
        return Step(scenario, f"step_{scenario}", arguments, limit, CONDITIONS, wanted=wanted)

    return step


def say(**told: object) -> str:
    return f"print({json.dumps(told)!r}, flush=True)\n"


def test_numbers_are_figures_and_texts_are_conditions(stepping: Stepping) -> None:
    code = say(**{"images/s": [10, 30, 20]}) + "print('a word')\n" + say(MiB=5, graphs="left out")
    result = gpu.run(stepping("model", code), 60, 0.0)
    assert result.failed is None
    assert result.conditions == {**CONDITIONS, "graphs": "left out"}
    assert {name: figure.rounds for name, figure in result.figures.items()} == {
        "images/s": (10, 30, 20),
        "MiB": (5,),
    }
    assert result.wanted == {"images/s": "≥ 4000"}


def test_a_step_that_fails_is_told_with_its_reason_and_the_next_one_comes(
    stepping: Stepping, tmp_path: Path
) -> None:
    broken = stepping("broken", "raise SystemExit('no GPU\\nno memory left')")
    gpu.measure([broken, stepping("model", say(MiB=5))], tmp_path, seconds=60)
    first, second = read_report(tmp_path / "gpu.json").results
    assert first.failed == "it ended with 1: no memory left"
    assert second.figures["MiB"].median == 5
    assert "Not measured: it ended with 1: no memory left" in (tmp_path / "gpu.md").read_text()


def test_a_step_that_hangs_is_ended_with_its_children_and_what_it_told_counts(
    stepping: Stepping, tmp_path: Path
) -> None:
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    told = "print(json.dumps({'pid': child.pid}), flush=True)\ntime.sleep(600)\n"
    step = stepping("model", f"import json, subprocess, sys, time\n{child}{told}", limit=5)
    [result] = gpu.measure([step], tmp_path, seconds=60)
    assert result.failed is None
    assert result.conditions["not finished"] == "it was ended after 5 s"
    pid = int(result.figures["pid"].median)
    ends = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends


def test_what_does_not_fit_into_the_time_is_not_begun(stepping: Stepping, tmp_path: Path) -> None:
    [result] = gpu.measure([stepping("model", say(MiB=5))], tmp_path, seconds=0)
    assert result.failed == "there was no time left for it"


def test_the_models_rate_is_handed_on(stepping: Stepping, tmp_path: Path) -> None:
    model = stepping("model", say(**{"images/s": [3000, 1000, 2000]}))
    code = "import sys\nprint('{\"given\": ' + sys.argv[1] + '}')"
    before, _, after = gpu.measure(
        [stepping("before", code, MODEL_RATE), model, stepping("after", code, MODEL_RATE)],
        tmp_path,
        seconds=60,
    )
    assert (before.figures["given"].median, after.figures["given"].median) == (0, 2000)


def test_settings_from_outside_change_nothing(
    stepping: Stepping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEWARDEN_MODEL__PRECISION", "fp32")
    code = "import os\nprint('{\"given\": %d}' % ('IMAGEWARDEN_MODEL__PRECISION' in os.environ))"
    assert gpu.run(stepping("model", code), 60, 0.0).figures["given"].median == 0


def test_a_plan_takes_the_rate_for_that_of_a_gpu(stepping: Stepping, tmp_path: Path) -> None:
    gpu.measure([stepping("model", say(**{"images/s": 4100}))], tmp_path, seconds=60)
    rates = rates_of(read_report(tmp_path / "gpu.json"), "ViT-L-14")
    assert rates == {"model_per_second": 4100, "model_runs_on": "GPU"}


def test_a_report_names_the_device_that_torch_took() -> None:
    assert device_of("cuda:1") == "cuda:1"
    assert device_of("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("quick", [True, False])
def test_every_step_is_there_and_what_is_most_wanted_comes_first(quick: bool) -> None:
    found = steps("cuda", quick=quick)
    assert [step.scenario for step in found[:3]] == ["weights", "model", "end-to-end"]
    assert all(importlib.util.find_spec(step.module) for step in found)
    assert len({(step.scenario, step.arguments) for step in found}) == len(found)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.6", "kafka-python[lz4]==3.0.12"]\n'
        '[project.optional-dependencies]\ndemo = ["psutil"]\n'
    )

    def installed(name: str) -> str:
        if name == "kafka-python":
            raise PackageNotFoundError(name)
        return "1.0"

    assert gpu.missing(tmp_path / "pyproject.toml", installed) == ["kafka-python"]
    assert gpu.missing(tmp_path / "no-checkout.toml", installed) == []


# ---------------------------------------------------------------- what the steps run


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """An architecture that open_clip then knows."""
    config = tmp_path / "tiny-for-the-bench.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    return config.stem


def test_each_path_of_the_tower_has_rates_and_a_guard(tiny: str) -> None:
    found: dict[str, Any] = {}
    for told in gpu_model.rates("cpu", tiny, "bf16", "1,3", "0.001"):
        found |= told
    assert found.pop("graphs") == "left out, it needs a GPU"
    ways = ("no fused attention", "attention without its fast path", "channels first")
    for path in ("eager", *(f"eager, {way}" for way in ways)):
        for batch in (1, 3):
            assert len(found.pop(f"images/s, {path}, batch {batch}")) == 3
        assert 0.99 < found.pop(f"worst cosine to fp32, {path}") <= 1.001
    assert not found


def test_each_way_from_host_to_rows_has_rates(tiny: str) -> None:
    found: dict[str, Any] = {}
    for told in gpu_model.copies("cpu", tiny, "fp32", "2", "0.001"):
        found |= told
    assert found.pop("graphs") == "left out, it needs a GPU"
    ways = ("as it lies", "pinned, one batch at a time", "pinned, the next one copied meanwhile")
    assert found.keys() == {f"images/s, {way}, batch 2" for way in ways}
