"""The machine that something is measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_LIBRARIES = (
    *("imagewarden", "torch", "open_clip_torch", "onnxruntime", "numpy", "pillow", "simplejpeg"),
    *("kafka-python", "httpx", "aiohttp", "redis", "uvloop"),
)


def machine() -> Mapping[str, str]:
    """Processors, memory, GPUs, broker, versions and commit."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        **_gpus(),
        "broker": "that of KAFKA_BOOTSTRAP" if os.environ.get("KAFKA_BOOTSTRAP") else "embedded",
        "python": platform.python_version(),
        **{name: found for name in _LIBRARIES if (found := _version(name))},
        "commit": _commit(),
    }


@lru_cache
def device_of(setting: str) -> str:
    """What a worker with this `model.device` runs the model on. Torch knows, and takes seconds to
    say it; this process does without it."""
    if setting != "auto":
        return setting
    code = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    return _told([sys.executable, "-P", "-c", code]) or "cpu"


def _gpus() -> dict[str, str]:
    asked = "--query-gpu=name,memory.total,driver_version"
    lines = _told(["nvidia-smi", asked, "--format=csv,noheader"]).splitlines()
    if not lines:
        return {}
    name, memory, driver = lines[0].split(", ")
    return {"GPUs": f"{len(lines)} × {name}, {memory}", "driver": driver}


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
    return _told(["git", "describe", "--always", "--dirty"]) or "unknown"


def _told(command: Sequence[str]) -> str:
    """What it printed; nothing where it cannot be run, or fails."""
    try:
        told = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return "" if told.returncode else told.stdout.strip()
