"""What a broker says before it hangs up is heard."""

from __future__ import annotations

import socket

import pytest

from worker.broker import _LastWords


def test_an_end_is_not_told_in_one_breath_with_what_came_before() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"wrong password")
        theirs.close()
        listening = _LastWords(ours)
        assert listening.recv(5) + listening.recv(100) == b"wrong password"
        with pytest.raises(BlockingIOError):
            listening.recv(100)
        assert listening.recv(100) == b""
        assert listening.recv(100) == b""
