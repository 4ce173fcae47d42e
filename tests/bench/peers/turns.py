"""One round of one peer: a fresh process, timed from outside by what it tells.

The rate is that of the steady part, as it is of the service's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.bench.peers.environments import Unavailable, last_line
from worker.bench.service import STEADY
from worker.children import die_with_parent

_SECONDS = 300

#: No telemetry, no look at a hub, nothing but loopback, and no GPU, which not all would use.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "INFINITY_MEDIA_URL_BLACKLIST": "",  # else it fetches nothing from loopback
    "JINA_DEFAULT_HOST": "127.0.0.1",
    "JINA_OPTOUT_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
}


#: When it was, images done, CPU seconds and MiB resident of the process and all below it.
Mark = tuple[float, int, float, float]


@dataclass(frozen=True, slots=True)
class Turn:
    figures: Mapping[str, float]
    versions: Mapping[str, str]


def turn(command: Sequence[str], images: int) -> Turn:
    """What a process that tells as ``inside/progress.py`` does is like in its steady part. Raises
    ``Unavailable`` where it does not do so many images."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, tempfile.TemporaryFile() as errors:
        with _running(command, folder, errors.fileno()) as process:
            versions, marks = _listened(process, images)
        if len(marks) < len(STEADY):
            errors.seek(0)
            late = process.returncode == -signal.SIGKILL
            reason = f"killed, as after {_SECONDS} s" if late else last_line(errors.read())
            raise Unavailable(f"does not run: {reason}")
    (began, first, before, _), (ended, last, after, resident) = marks
    figures = {
        "images/s": (last - first) / (ended - began),
        "core-ms/image": 1000 * (after - before) / (last - first),
        "MiB resident": resident,
    }
    return Turn(figures, versions)


def _listened(process: subprocess.Popen[bytes], images: int) -> tuple[dict[str, str], list[Mark]]:
    """Until so many images are done, or the process has ended: its versions, and the ends of the
    steady part."""
    assert process.stdout is not None
    versions: dict[str, str] = {}
    marks: list[Mark] = []
    done = 0
    for line in process.stdout:
        told = json.loads(line)
        if isinstance(told, dict):
            versions |= told
            continue
        done += told
        if len(marks) < len(STEADY) and done >= STEADY[len(marks)] * images:
            marks.append((time.perf_counter(), done, *_used(process.pid)))
        if done >= images:
            return versions, marks
    process.wait()
    return versions, []


def _used(pid: int) -> tuple[float, float]:
    """CPU seconds and MiB resident of a process and all below it."""
    seconds = resident = 0.0
    own = psutil.Process(pid)
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])  # with those it has waited for
            memory = process.memory_full_info()
            resident += getattr(memory, "pss", memory.rss) / 2**20  # what they share, once
    return seconds, resident


@contextmanager
def _running(command: Sequence[str], folder: str, errors: int) -> Iterator[subprocess.Popen[bytes]]:
    """Ended, with all that it started, at the latest when its time is up."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, **_ENVIRONMENT, "TMPDIR": folder},
        process_group=0,  # which is ended whole, even what was left behind by what started it
        preexec_fn=die_with_parent(),
    )
    late = threading.Timer(_SECONDS, _end, [process.pid])
    late.start()
    try:
        with process:
            try:
                yield process
            finally:
                _end(process.pid)
    finally:
        late.cancel()
        late.join()


def _end(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
