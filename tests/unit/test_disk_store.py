"""What is kept on disk, and what becomes of it when the disk is not well. That it is a ``Store``
like any other, its contract tests say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from worker.authoring.disk_store import DiskStore, cache_folder


@asynccontextmanager
async def opened(
    file: Path, max_bytes: int = 2**20, clock: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[DiskStore]:
    store = DiskStore(file, max_bytes=max_bytes, clock=clock)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


async def test_what_was_put_is_there_when_it_is_opened_again(file: Path) -> None:
    async with opened(file) as store:
        await store.put([("a", b"1", 60), ("b", b"2", 60), ("a", b"3", 60)])
    async with opened(file) as store:
        assert await store.get(["b", "none", "a"]) == [b"2", None, b"3"]
        await store.delete(["a"])
        assert await store.get(["a"]) == [None]


async def test_a_value_is_kept_for_its_time(file: Path) -> None:
    async with opened(file) as store:
        await store.put([("a", b"1", 60)])
    async with opened(file, clock=lambda: 61.0) as store:
        assert await store.get(["a"]) == [None]


async def test_what_lives_longest_is_kept_within_its_bound(file: Path) -> None:
    async with opened(file, max_bytes=250) as store:
        await store.put([(str(seconds), bytes(100), seconds) for seconds in (30, 10, 20)])
    async with opened(file) as store:
        found = await store.get(["10", "20", "30"])
        assert [value is not None for value in found] == [False, True, True]


async def test_two_processes_share_it(file: Path) -> None:
    async with opened(file) as one, opened(file) as other:
        await one.put([("a", b"1", 60)])
        assert await other.get(["a"]) == [b"1"]


@pytest.fixture
def damaged(file: Path) -> Path:
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    return file


async def test_a_damaged_file_has_nothing_and_keeps_nothing(damaged: Path) -> None:
    async with opened(damaged) as store:
        await store.put([("a", b"1", 60)])
        assert await store.get(["a"]) == [None]
        await store.delete(["a"])


async def test_a_folder_that_cannot_be_made_is_a_store_that_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_bytes(b"")
    async with opened(tmp_path / "occupied" / "cache.sqlite") as store:
        await store.put([("a", b"1", 60)])
        assert await store.get(["a"]) == [None]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/var/cache"}, Path("/var/cache/imagewarden")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "imagewarden"),
        ({}, Path.home() / ".cache" / "imagewarden"),
    ],
)
def test_the_cache_is_where_programs_keep_theirs(environment: dict[str, str], folder: Path) -> None:
    assert cache_folder(environment) == folder
    assert os.path.isabs(folder)
