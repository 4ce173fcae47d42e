"""Sample images without end."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from worker.demo.image_server import ImageServer, serving
from worker.demo.samples import Samples

_KEPT = 30


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ImageServer, Samples]]:
    with serving({}) as server:
        yield server, Samples(server, random.Random(1), kept=_KEPT)


def test_what_is_asked_for_is_served(served: tuple[ImageServer, Samples]) -> None:
    server, samples = served
    for _ in range(20):
        path = samples.next()
        reply = server.replies[path]
        if not reply.delay_seconds:
            answer = httpx.get(server.url(path))
            assert (answer.status_code, answer.content) == (reply.status, reply.body)


def test_most_are_new_and_the_rest_are_what_a_demonstration_shows(
    served: tuple[ImageServer, Samples],
) -> None:
    server, samples = served
    shown = {path for path in server.replies if not path.startswith("/cuts/")}
    paths = [samples.next() for _ in range(300)]
    new = [path for path in paths if path.startswith("/cuts/")]
    assert len(set(new)) == len(new)
    assert set(paths) - set(new) <= shown
    assert 0.7 < len(new) / len(paths) < 0.9
    assert len({server.replies[path].body for path in new[-_KEPT:]}) == _KEPT


def test_cuts_that_are_served_are_bounded(served: tuple[ImageServer, Samples]) -> None:
    server, samples = served
    for _ in range(2 * _KEPT):
        last = samples.next()
    assert last in server.replies
    assert sum(path.startswith("/cuts/") for path in server.replies) == _KEPT


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "worker.demo.samples", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("imagewarden: ")
    assert "in use" in done.stderr


def test_a_rate_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.demo.samples", "--rate", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--rate must be more than 0" in done.stderr
