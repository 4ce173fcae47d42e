"""A decoder process seen from its parent: started, sent images, waited for, ended.

What it answers is data from a process that a stranger's bytes may have taken over: lengths are
capped before anything is allocated, every field is checked against what was asked, and an answer
that is not one costs the child its life.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from worker.decoder_process import HEADER_LENGTH, Allowance, Task
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.image_formats import MEDIA_TYPES
from worker.types import Decoded, ImageFacts

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_START_SECONDS = 60.0  # Python, numpy and Pillow take 0.2 s; a cold disk much longer
_HEADER_BYTES = 64 * 2**10  # a few hundred, and some more for each row
_READ_BYTES = 4096  # most headers, and of the pixels what is worth no read of its own
_DETAIL_CHARACTERS = 500
_PDQ = r"[0-9a-f]{64}"

# Run by a fresh interpreter with the parent's own module path: forking a process with threads and
# a model in it is unsafe, and multiprocessing would import the parent's main module again.
_CODE = "import sys; sys.path[:] = {!r}; from worker.decoder_process import main; main()"

#: What the loader and the interpreter may need. The rest of the environment holds passwords.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")


class Closed(RuntimeError):
    """The pool was closed."""


class Lost(Exception):
    """The child is gone; the message says why. ``cause`` is the label of the metric."""

    def __init__(self, code: ErrorCode, cause: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Rejection:
    """What the child says of an image that it could not decode."""

    code: ErrorCode
    detail: str


_ANSWER: TypeAdapter[ImageFacts | Rejection] = TypeAdapter(ImageFacts | Rejection)


def read_header(header: bytes, task: Task, max_pixels: int) -> ImageFacts | Rejection:
    """A child's header, for the image it was asked for. Raises ``ValueError``."""
    answer = _ANSWER.validate_json(header, strict=True)
    if isinstance(answer, Rejection):
        return Rejection(answer.code, answer.detail[:_DETAIL_CHARACTERS])
    plausible = (
        answer.sha256 == task.sha256
        and answer.bytes == len(task.body)
        and answer.media_type in MEDIA_TYPES
        and (answer.perceptual_hash is None or re.fullmatch(_PDQ, answer.perceptual_hash))
        and min(answer.width, answer.height) >= 1
        and answer.width * answer.height <= max_pixels
        and 1 <= len(answer.rows) <= task.plan.max_frames * task.plan.max_tiles
        and answer.rows == tuple(sorted(answer.rows))
        and 0 == answer.rows[0] <= answer.rows[-1] < answer.frames
    )
    if not plausible:
        raise ValueError("these are not the facts of the image")
    return answer


class _Said(io.RawIOBase):
    """What a child says, until ``deadline`` on the monotonic clock."""

    def __init__(self, source: socket.socket, closing: Connection[Any, Any]) -> None:
        self.deadline = 0.0
        self._source = source.fileno()
        self._closing = closing.fileno()
        self._readable = selectors.DefaultSelector()
        for each in (self._source, self._closing):
            self._readable.register(each, selectors.EVENT_READ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """At least one byte, or none at its end. Raises ``OSError`` and ``Closed``."""
        while True:
            try:
                return os.readv(self._source, [buffer])
            except BlockingIOError:
                self._wait()

    def _wait(self) -> None:
        ready = self._readable.select(max(0.0, self.deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        if any(key.fd == self._closing for key, _ in ready):
            raise Closed("the decoder pool was closed")

    def close(self) -> None:
        self._readable.close()
        super().close()


class Child:
    """A decoder process and the socket to it, used by the thread that made it and no other: the
    kernel ends the process with that thread, not with the whole parent (prctl(2)).

    ``closing`` becomes readable when the pool closes. Raises ``RuntimeError`` when the process
    cannot start, and ``Closed``.
    """

    def __init__(self, allowance: Allowance, closing: Connection[Any, Any]) -> None:
        self._allowance = allowance
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(allowance.timeout_seconds)  # of a whole message that is sent
        self._said = _Said(self._socket, closing)
        # each read gives Python's lock away and waits for it, so a whole header comes in one
        self._answers = io.BufferedReader(self._said, _READ_BYTES)
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-c",
                    _CODE.format(sys.path),
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent to deal with
                env={**inherited, "OPENBLAS_NUM_THREADS": "1"},  # it computes nothing
            )
        try:
            self._send(allowance)
            self._said.deadline = time.monotonic() + _START_SECONDS
            self._read(HEADER_LENGTH.size)
        except Closed:
            self.kill()
            raise
        except (Lost, EOFError, OSError) as error:
            self.kill()
            raise RuntimeError(
                f"a decoder process ended with status {self._process.returncode} before it was "
                "ready; it may have said why on standard error"
            ) from error

    def send(self, tasks: Sequence[Task]) -> None:
        """Raises ``Lost``. Its code says that no image is to blame: none has been looked at."""
        try:
            self._send(list(tasks))
        except TimeoutError as error:
            self.kill()
            message = "the decoder process takes no more images"
            raise Lost(ErrorCode.DECODE_CRASHED, "timeout", message) from error
        except OSError as error:
            raise self._lost() from error

    def receive(self, task: Task) -> Decoded | Unexaminable:
        """The answer to the next image. Raises ``Lost`` and ``Closed``."""
        self._said.deadline = time.monotonic() + self._allowance.timeout_seconds
        try:
            (length,) = HEADER_LENGTH.unpack(self._read(HEADER_LENGTH.size))
            if length > _HEADER_BYTES:
                raise self._garbage(f"a header of {length} bytes")
            header = self._read(length)
            answer = read_header(header, task, self._allowance.limits.max_pixels)
            if isinstance(answer, Rejection):
                return Unexaminable(answer.code, Stage.DECODE, answer.detail)
            pixels = np.empty((len(answer.rows), *task.spec.size, 3), np.uint8)
            if self._answers.readinto(pixels.reshape(-1).data) < pixels.nbytes:
                raise EOFError
        except TimeoutError:
            self.kill()
            raise self._too_slow() from None
        except ValueError as error:
            what = "no JSON of this form" if isinstance(error, ValidationError) else str(error)
            raise self._garbage(what) from error
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return Decoded(pixels, answer)

    def kill(self) -> None:
        if self._process.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and whatever it may have started
            self._process.wait()
        self._said.close()
        self._socket.close()

    def _send(self, message: object) -> None:
        self._socket.sendall(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _read(self, length: int) -> bytes:
        read = self._answers.read(length)
        if len(read) < length:
            raise EOFError
        return read

    def _too_slow(self) -> Lost:
        seconds = self._allowance.timeout_seconds
        return Lost(ErrorCode.DECODE_TIMEOUT, "timeout", f"not decoded within {seconds:g} seconds")

    def _garbage(self, what: str) -> Lost:
        self.kill()
        return Lost(
            ErrorCode.DECODE_CRASHED, "garbage", f"the decoder process answered nonsense: {what}"
        )

    def _lost(self) -> Lost:
        self.kill()
        status = self._process.returncode
        if status == errno.ENOMEM:
            mebibytes = self._allowance.memory_bytes // 2**20
            return Lost(
                ErrorCode.DECODE_MEMORY, "memory", f"needs more than {mebibytes} MiB of memory"
            )
        if status == -signal.SIGXCPU:
            return self._too_slow()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Lost(ErrorCode.DECODE_CRASHED, "crashed", f"the decoder process ended with {how}")
