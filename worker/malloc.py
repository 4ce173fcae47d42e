"""How glibc's malloc treats a process that runs a model; with another malloc nothing is done."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8  # of <malloc.h>, all three


def one_arena() -> None:
    """For all threads. To be called before there are any: an arena that is there already stays, a
    stream of the model's may get it, and all but the first take 64 MiB and no more. For the rest
    they ask the kernel, 1,000 page faults an image."""
    _set(_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Of what torch frees, give nothing back, in the whole process.

    A batch allocates and frees activations of tens of megabytes, layer by layer. glibc asks the
    kernel for each and gives it back, and more time goes into zeroing fresh pages than into
    convolutions (4,000 page faults an image; without them a batch takes half the time).
    """
    one_arena()
    _set(_TRIM_THRESHOLD, 512 * 2**20)
    # older versions take no more than 32 MiB
    _set(_MMAP_THRESHOLD, 256 * 2**20) or _set(_MMAP_THRESHOLD, 32 * 2**20)


def _set(option: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(option, value))
