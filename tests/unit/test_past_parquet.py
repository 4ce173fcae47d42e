"""The past as Parquet: written whole, and read back as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.past_records import (
    ENCODER,
    NOON,
    WINDOW,
    compiled,
    embedding,
    green,
    past_of,
    records,
    red,
    verdict,
)
from worker.errors import ErrorCode, Misconfigured
from worker.past.backtest import backtest
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past
from worker.past.parquet import SCHEMA, read_parquet, write_past
from worker.past.window import Window
from worker.types import FramePlan

THEN = compiled()
NEW = compiled(red(block=1.0), green(review=1.0), tenants={"t": {"red": {"block": 0.95}}})
RED, GREEN = embedding("red", "red"), embedding("green", "green", "blue", hash_="0f" * 32)
PADDED = embedding("red", "red", plan=FramePlan(views="pad"))


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


@pytest.fixture
def other() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


async def a_past(store: EmbeddingStore, *names: str) -> Past:
    said = [
        verdict(
            name,
            (RED, GREEN, ErrorCode.HOST_UNAVAILABLE, embedding("gone", "red"))[n % 4],
            THEN,
            tenant=(None, "t")[n % 2],
            at=NOON + timedelta(hours=6 * n),
        )
        for n, name in enumerate(names)
    ]
    return await past_of(records(*said, b"?"), records(RED, GREEN, PADDED, b"?"), store)


async def test_a_backtest_from_parquet_is_the_one_from_the_topics(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    past = await a_past(store, *"abcdefghij")
    write_past(past, tmp_path / "past.parquet")
    read = read_parquet([tmp_path / "past.parquet"], other)
    one, two = (backtest(each, NEW, ENCODER.info) for each in (past, read))
    assert one.flips
    assert sorted(map(str, one.flipped)) == sorted(map(str, two.flipped))
    for what in ("requests", "replayed", "flips", "categories", "tenants", "days", "left_out"):
        assert getattr(one, what) == getattr(two, what), what
    assert one.notes == two.notes


async def test_it_holds_every_verdict_and_every_embedding_of_its_image(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    past = await a_past(store, *"abcd")
    assert write_past(past, tmp_path / "past.parquet") == 5  # one is embedded by two plans
    table = pq.read_table(tmp_path / "past.parquet")
    assert table.schema.names == SCHEMA.names
    assert set(table["request_id"].to_pylist()) == set("abcd")
    by_plan = {row["plan_digest"] for row in table.to_pylist() if row["request_id"] == "a"}
    assert by_plan == {RED.key.plan, PADDED.key.plan}
    assert table.filter(pa.compute.is_null(table["embedding"])).num_rows == 2


async def test_files_that_overlap_are_one_past(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    first = verdict("a", RED, THEN)
    second = verdict("a", GREEN, THEN, supersedes=first.verdict_id, at=NOON + timedelta(days=1))
    with EmbeddingStore() as yesterdays:
        past = await past_of(records(first), records(RED, GREEN), yesterdays)
        write_past(past, tmp_path / "1.parquet")
    past = await past_of(records(first, second), records(RED, GREEN), store)
    write_past(past, tmp_path / "2.parquet")
    for order in (("1", "2"), ("2", "1")):
        read = read_parquet([tmp_path / f"{name}.parquet" for name in order], other)
        assert read.verdicts["verdict_id"].to_pylist() == [str(second.verdict_id)]
        assert read.verdicts["first_at"].to_pylist() == [NOON]


async def test_a_window_chooses_among_what_a_file_holds(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    write_past(await a_past(store, *"abcd"), tmp_path / "past.parquet")
    window = Window(NOON + timedelta(hours=6), NOON + timedelta(hours=18))
    read = read_parquet([tmp_path / "past.parquet"], other, window)
    assert sorted(read.verdicts["request_id"].to_pylist()) == ["b", "c"]


async def test_an_empty_past_is_written_and_read(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    write_past(await past_of([], [], store), tmp_path / "past.parquet")
    assert len(read_parquet([tmp_path / "past.parquet"], other)) == 0


async def test_numbers_that_are_no_embedding_are_counted(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    path = tmp_path / "past.parquet"
    write_past(await past_of(records(verdict("a", RED, THEN)), records(RED), store), path)
    table = pq.read_table(path)
    nan = pa.array([b"\xff\x7f" * RED.rows.size], pa.binary())
    place = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(place, table.schema.field(place), nan), path)
    read = read_parquet([path], other)
    assert (read.tally.unreadable_embeddings, read.embedded()) == (1, 0)


# ---------------------------------------------------------------- what is refused


def test_what_is_no_parquet_is_refused(other: EmbeddingStore, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    for name in ("x.parquet", "absent.parquet"):
        with pytest.raises(Misconfigured, match=rf"{name} cannot be read"):
            read_parquet([tmp_path / name], other)


def test_parquet_of_others_is_refused(other: EmbeddingStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "x.parquet")
    with pytest.raises(Misconfigured, match="nothing that this version"):
        read_parquet([tmp_path / "x.parquet"], other)


async def test_a_file_that_was_cut_or_damaged_is_refused(
    store: EmbeddingStore, other: EmbeddingStore, tmp_path: Path
) -> None:
    path = tmp_path / "past.parquet"
    write_past(await a_past(store, *"abcd"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(Misconfigured, match="cannot be read"):
        read_parquet([path], other)
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])
    with pytest.raises(Misconfigured, match="is damaged"):
        read_parquet([path], other)


async def test_an_interrupted_export_leaves_what_was_there(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    path = tmp_path / "past.parquet"
    path.write_bytes(b"before")

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_past(await a_past(store, *"abcd"), path, progress=interrupted)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["past.parquet"]


async def test_a_folder_that_is_not_there_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    past = await past_of([], [], store, WINDOW)
    with pytest.raises(Misconfigured, match="cannot be written"):
        write_past(past, tmp_path / "absent" / "past.parquet")
