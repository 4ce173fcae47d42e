"""The import rules: what may know of what. ARCHITECTURE.md says why."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "worker"
MAX_LINES = 350

#: What each stage may import of the stages: its own other half, if it has one.
STAGES = {
    "source": {"broker", "rebalance"},
    "publish": {"broker", "handover"},
    "handover": set(),
    "topics": {"broker"},
    "topic_admin": {"broker", "topic_plan"},
    "transactions": {"broker", "rebalance"},
    "broker": {"unreadable"},
    "unreadable": set(),
    "rebalance": set(),
    "fetch": {"connections", "egress", "proxy", "resolver"},
    "proxy": {"connections"},
    "resolver": {"flights"},
    "connections": set(),
    "egress": set(),
    "decode": {"decoder_child", "decoder_process", "handover", "imaging", "image_formats"},
    "decoder_child": {"decoder_process", "image_formats"},
    "decoder_process": {"imaging", "image_formats"},
    "imaging": {"views", "colours", "image_formats", "perceptual"},
    "image_formats": set(),
    "colours": set(),
    "views": set(),
    "perceptual": set(),
    "cache": set(),
    "stores": set(),
    "redis_counts": set(),
    "embed": {
        *("cuda_engine", "malloc", "onnx_engine", "packed_linears", "pocket", "torch_engine"),
        "weights",
    },
    "malloc": set(),
    "onnx_engine": {"canaries", "torch_engine"},
    "packed_linears": {"canaries", "torch_engine"},
    "cuda_engine": {"canaries", "staged_engine", "torch_engine"},
    "canaries": set(),
    "staged_engine": set(),
    "torch_engine": {"uncompiled"},
    "model_check": {"embed", "uncompiled", "weights"},
    "weights": {"pocket", "uncompiled"},
    "pocket": {"minilm", "uncompiled"},
    "minilm": set(),
    "uncompiled": set(),
}

#: What every stage may import: values, errors, metrics and the pure cores, which do no I/O.
COMMON = {"types", "seams", "errors", "telemetry", "batching", "commit", "policy", "score"}

#: Implementations of the Protocols: only who puts a process together may know them.
CONCRETE = {
    "source",
    "publish",
    "transactions",
    "topics",
    "topic_admin",
    "fetch",
    "decode",
    "stores",
    "redis_counts",
    "embed",
}

#: Modules that compute and do no I/O of their own.
PURE = {
    "commit",
    "ledger",
    "poison",
    "rejections",
    "retries",
    "score",
    "policy",
    "compile",
    "lists",
    "compiled",
    "decide_many",
    "frames",
    "heads",
    "views",
    "types",
    "seams",
    "errors",
    "verdicts",
    "schema",
    "feedback",
    "past.feedback",
    "past.live_rates",
    "planning",
    "topic_plan",
    "scrapes",
    "commands.top_numbers",
}
IO = {"asyncio", "socket", "httpx", "httpcore", "kafka", "redis", "subprocess", "threading", "os"}

WITH_TORCH = {
    *("bench.gpu_decode", "bench.gpu_model", "bench.weights", "cuda_engine", "embed"),
    *("minilm", "model_check", "onnx_engine", "packed_linears", "pocket", "torch_engine"),
    *("uncompiled", "weights"),
}
TORCH = {"torch", "torchvision", "open_clip", "timm", "transformers"}


def name_of(path: Path) -> str:
    """``commands.scan`` of ``worker/commands/scan.py``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Everything a module imports anywhere in it, in full: ``worker.telemetry``, ``kafka``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: imported(path) for name, path in PATHS.items()}
#: Of our own modules, by the name they have in ``PATHS``.
OURS = {
    name: {of.removeprefix("worker.") for of in names} & PATHS.keys()
    for name, names in IMPORTS.items()
}
#: The packages of others.
THEIRS = {name: {of.partition(".")[0] for of in names} for name, names in IMPORTS.items()}
#: Typer's side of the command line: it alone may know of commands without being one.
COMMAND_LINE = {
    *("cli", "cli_editing", "cli_operating", "cli_past", "cli_planning", "cli_policy"),
    "command_line",
}
ENTRY_POINTS = {
    name
    for name in PATHS
    if name in ("app", "assembly", "lanes") or name.startswith(("bench.", "commands.", "demo."))
}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_imports_no_other_stage(stage: str) -> None:
    assert OURS[stage] <= COMMON | STAGES[stage]


@pytest.mark.parametrize("module", sorted(PATHS.keys() - STAGES.keys() - ENTRY_POINTS))
def test_only_who_puts_a_process_together_imports_implementations(module: str) -> None:
    assert not OURS[module] & CONCRETE


@pytest.mark.parametrize("module", sorted(PATHS.keys() - WITH_TORCH))
def test_only_the_model_imports_torch(module: str) -> None:
    assert not THEIRS[module] & TORCH


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_module_imports_nothing_that_does_io(module: str) -> None:
    assert not THEIRS[module] & IO


@pytest.mark.parametrize("module", sorted(PATHS.keys() - ENTRY_POINTS - COMMAND_LINE))
def test_only_entry_points_know_of_settings_and_commands(module: str) -> None:
    assert "settings" not in OURS[module] or module == "settings_load"
    assert "settings_load" not in OURS[module]
    assert not any(of.startswith(("commands.", "demo.")) for of in OURS[module])


@pytest.mark.parametrize("module", ["imaging", "decode", "decoder_process", "pipeline", "cli"])
def test_process_that_does_not_embed_does_not_pay_for_torch(module: str) -> None:
    code = f"import worker.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("module", sorted(PATHS))
def test_module_is_small_enough_to_hold_one_idea(module: str) -> None:
    assert len(PATHS[module].read_text().splitlines()) <= MAX_LINES
