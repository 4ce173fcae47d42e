"""How malloc is set; told by glibc itself, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, sys, threading
from worker.malloc import one_arena

one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is another malloc here")
def test_threads_share_one_arena() -> None:
    told = subprocess.run(
        [sys.executable, "-c", CODE], timeout=60, capture_output=True, text=True, check=True
    )
    assert told.stdout.count("<heap nr=") == 1
