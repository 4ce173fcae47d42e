"""An environment of its own for each peer, under a cache folder, made once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from worker.bench.weights import bench_folder

_INSTALL_SECONDS = 900


class Unavailable(Exception):
    """Why a peer cannot be measured, in its own or its installer's words."""


def python_of(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of its environment, made unless it is there, by uv: what an attempt that was
    cut short has downloaded is not downloaded again, and all share one copy of torch, which is of
    our own version. Raises ``Unavailable``."""
    wanted = [*requirements, f"torch=={version('torch').partition('+')[0]}"]
    mark = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = bench_folder() / "peers" / name
    python, done = folder / "bin" / "python", folder / f"installed-{mark}"
    if done.is_file():
        return python
    try:
        _uv("venv", "--clear", "--python", sys.executable, str(folder))
        _uv("pip", "install", "--python", str(python), *wanted)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"its installation took over {_INSTALL_SECONDS} s; run this again, and it goes on "
            "where it was"
        ) from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"not installed: {last_line(error.stderr)}") from None
    done.touch()
    return python


def last_line(told: bytes) -> str:
    lines = [line.strip() for line in told.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _uv(*arguments: str) -> None:
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
