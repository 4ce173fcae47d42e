"""Embeddings on this machine's disk, so that trying again does not mean embedding again."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS kept
    (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL)
"""
_WAIT_SECONDS: Final = 1.0  # for another process that writes


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where programs keep what they can do without (XDG Base Directory Specification)."""
    folder = environment.get("XDG_CACHE_HOME", "")
    root = Path(folder) if folder.startswith("/") else Path.home() / ".cache"
    return root / "imagewarden"


class DiskStore:
    """A ``Store`` in one SQLite file, which processes may share.

    What lives longest is kept once its values take more than ``max_bytes``; that is looked at when
    it is closed. A file that cannot be opened or is damaged is a store that has nothing and keeps
    nothing. ``clock`` gives seconds since the epoch.
    """

    def __init__(
        self, file: Path, *, max_bytes: int = 512 * 2**20, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._clock = clock
        self._database: sqlite3.Connection | None = None
        with self._forgiving():
            file.parent.mkdir(parents=True, exist_ok=True)
            # each statement is a transaction
            self._database = sqlite3.connect(file, timeout=_WAIT_SECONDS, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = OFF")  # losing it costs time alone
            self._database.execute(_TABLE)

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        found: dict[str, bytes] = {}
        with self._forgiving():
            if self._database:
                marks = ", ".join("?" * len(keys))
                found = dict(
                    self._database.execute(
                        f"SELECT key, value FROM kept WHERE key IN ({marks}) AND expires > ?",
                        (*keys, self._clock()),
                    )
                )
        return [found.get(key) for key in keys]

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        now = self._clock()
        with self._forgiving():
            if self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)",
                    [(key, value, now + seconds) for key, value, seconds in items],
                )

    async def delete(self, keys: Sequence[str]) -> None:
        with self._forgiving():
            if self._database:
                self._database.executemany(
                    "DELETE FROM kept WHERE key = ?", [(key,) for key in keys]
                )

    async def close(self) -> None:
        with self._forgiving():
            if self._database:
                self._database.execute("DELETE FROM kept WHERE expires <= ?", (self._clock(),))
                self._database.execute(
                    "DELETE FROM kept WHERE key IN (SELECT key FROM (SELECT key, SUM(LENGTH(value))"
                    " OVER (ORDER BY expires DESC, key) AS held FROM kept) WHERE held > ?)",
                    (self._max_bytes,),
                )
                self._database.close()
        self._database = None

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            _log.warning("no_disk_cache", file=str(self._file), error=str(error))
            if self._database:
                self._database.close()
            self._database = None
