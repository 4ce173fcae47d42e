"""The child process that decodes: limits on itself first, then images until its socket closes.

``worker.decode`` calls ``main`` in a fresh interpreter, sends ``(limits, memory_bytes,
timeout_seconds)``, and gets ``b""`` once it is ready. From then on it takes lists of ``(body,
sha256, spec, plan)`` and answers each image by itself: a JSON header, then the pixels if there are
any. Answers are never pickled: whatever a hostile image makes this process say is read as data.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from worker.errors import Unexaminable
from worker.imaging import Limits, decode
from worker.types import FramePlan, PreprocessSpec

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """``sys.argv[1]`` is the descriptor of the socket to the parent."""
    _live_and_die_with_the_parent()
    _silence_libraries()
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is done, or gone
        limits, memory_bytes, timeout_seconds = connection.recv()
        _limit_memory(memory_bytes)
        connection.send_bytes(b"")
        while True:
            for body, sha256, spec, plan in connection.recv():
                # a second barrier, for when the parent cannot watch the clock
                allowed = math.ceil(time.process_time() + timeout_seconds) + 1
                _lower(resource.RLIMIT_CPU, allowed)
                _answer(connection, body, sha256, spec, plan, limits)


def _answer(
    connection: Connection[Any, Any],
    body: bytes,
    sha256: str,
    spec: PreprocessSpec,
    plan: FramePlan,
    limits: Limits,
) -> None:
    try:
        decoded = decode(body, sha256, spec, plan, limits)
    except Unexaminable as rejected:
        rejection = {"code": rejected.code, "detail": rejected.detail}
        connection.send_bytes(json.dumps(rejection).encode())
    except MemoryError:
        # what is left of the memory is in pieces: a new process does better
        os._exit(errno.ENOMEM)
    else:
        header = {"facts": asdict(decoded.facts), "shape": decoded.pixels.shape}
        connection.send_bytes(json.dumps(header).encode())
        connection.send_bytes(decoded.pixels.reshape(-1).data)


def _live_and_die_with_the_parent() -> None:
    # service managers signal all processes, but which of them stop when is for the parent to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # elsewhere it ends after the image in hand, by its closed socket
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _silence_libraries() -> None:
    """libtiff writes what it thinks of a file to descriptor 2; only tracebacks go there now."""
    sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: SIM115, PTH123
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _limit_memory(extra_bytes: int) -> None:
    _lower(resource.RLIMIT_CORE, 0)  # a crash should not leave somebody's photo on the disk
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + extra_bytes)
        with contextlib.suppress(OSError):
            # when the machine runs out of memory, let the kernel end this and not the worker
            Path("/proc/self/oom_score_adj").write_text("1000")


def _lower(kind: int, value: int) -> None:
    """Set the soft limit, which may not be above the hard one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
