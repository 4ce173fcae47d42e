"""The child process that decodes: limits on itself first, then images until its socket closes.

``worker.decoder_child`` calls ``main`` in a fresh interpreter, sends an ``Allowance``, and gets an
empty answer once this process is ready. From then on it takes lists of ``Task`` and answers each
image by itself: the length of a JSON header, the header, then the pixels if there are any. Answers
are never pickled: whatever a hostile image makes this process say is read as data.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import math
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from worker.errors import Unexaminable
from worker.image_formats import FORMATS
from worker.imaging import Limits, decode
from worker.types import FramePlan, PreprocessSpec

HEADER_LENGTH = struct.Struct("!I")

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class Allowance(NamedTuple):
    """What a child may use: ``memory_bytes`` beside the interpreter's own, ``timeout_seconds`` for
    one image; and whether it is to make perceptual hashes."""

    limits: Limits
    memory_bytes: int
    timeout_seconds: float
    hashed: bool


class Task(NamedTuple):
    """One image to decode. ``sha256`` is the hex digest of ``body``."""

    body: bytes
    sha256: str
    spec: PreprocessSpec
    plan: FramePlan


def main() -> None:
    """``sys.argv[1]`` is the descriptor of the socket to the parent."""
    parent = socket.socket(fileno=int(sys.argv[1]))
    os.dup(parent.fileno())  # open until this process ends: the parent then finds its status
    _live_and_die_with_the_parent()
    _silence_libraries()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is done, or gone
        messages = parent.makefile("rb")
        allowance: Allowance = pickle.load(messages)
        _confine(allowance.memory_bytes)
        _say(parent, b"")
        while True:
            for task in pickle.load(messages):
                # a second barrier, for when the parent cannot watch the clock
                allowed = math.ceil(time.process_time() + allowance.timeout_seconds) + 1
                _lower(resource.RLIMIT_CPU, allowed)
                _answer(parent, task, allowance)


def _answer(parent: socket.socket, task: Task, allowance: Allowance) -> None:
    try:
        decoded = decode(*task, allowance.limits, hashed=allowance.hashed)
    except Unexaminable as rejected:
        rejection = {"code": rejected.code, "detail": rejected.detail}
        _say(parent, json.dumps(rejection).encode())
    except MemoryError:
        # what is left of the memory is in pieces: a new process does better
        os._exit(errno.ENOMEM)
    else:
        pixels = decoded.pixels.reshape(-1).data
        _say(parent, json.dumps(asdict(decoded.facts)).encode(), pixels)


def _say(parent: socket.socket, header: bytes, pixels: bytes | memoryview = b"") -> None:
    # together: the parent is woken once, and finds all of it
    parts = [HEADER_LENGTH.pack(len(header)) + header, pixels]
    sent = parent.sendmsg(parts)
    if sent < sum(map(len, parts)):  # a signal came in between
        parent.sendall(b"".join(parts)[sent:])


def _live_and_die_with_the_parent() -> None:
    # service managers signal all processes, but which of them stop when is for the parent to say
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # elsewhere it ends after the image in hand, by its closed socket
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _silence_libraries() -> None:
    """Pillow logs what it thinks of a file, and libtiff writes it to descriptor 2; from now on only
    tracebacks go to standard error."""
    logging.disable()
    sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: SIM115, PTH123
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _confine(extra_memory_bytes: int) -> None:
    """From here on this process opens nothing, connects to nothing and starts nothing.

    All that decoding needs is imported, and a descriptor is what files and sockets begin with.
    ``RLIMIT_NPROC``, and that no limit can be raised again, do not bind a process of root's.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # when the machine runs out of memory, let the kernel end this and not the worker
            Path("/proc/self/oom_score_adj").write_text("1000")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower_for_good(resource.RLIMIT_AS, pages * resource.getpagesize() + extra_memory_bytes)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lower_for_good(resource.RLIMIT_CORE, 0)  # a crash should not leave a photo on the disk
    if "HEIF" not in FORMATS:  # its library decodes in a thread of its own
        _lower_for_good(resource.RLIMIT_NPROC, 0)
    _lower_for_good(resource.RLIMIT_NOFILE, 0)


def _lower(kind: int, value: int) -> None:
    """Set the soft limit, which may not be above the hard one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (_least(value, hard), hard))


def _lower_for_good(kind: int, value: int) -> None:
    """Set the soft limit and the hard one."""
    least = _least(value, resource.getrlimit(kind)[1])
    resource.setrlimit(kind, (least, least))


def _least(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
