"""``imagewarden search`` over a past in Parquet, by the SHA-256 of an image: it needs no model."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.past_records import ENCODER, NOON, compiled, embedding, past_of, records, verdict
from worker.cli import cli
from worker.past.embedding_store import EmbeddingStore
from worker.past.parquet import write_past
from worker.past.search import images_of
from worker.types import digest_of

POLICY = compiled()
RED, BLACK, BLUE = (
    embedding("red", "red"),
    embedding("black", "black"),
    embedding("blue", "blue"),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images: one was judged twice, one by another model."""
    path = tmp_path_factory.mktemp("past") / "past.parquet"
    said = [
        verdict("a", RED, POLICY, at=NOON - timedelta(days=2), tenant="shop"),
        verdict("b", RED, POLICY, at=NOON - timedelta(days=1)),
        verdict("c", BLACK, POLICY),
        verdict("d", BLUE, POLICY),
    ]

    async def write() -> None:
        with EmbeddingStore() as store:
            write_past(await past_of(records(*said), records(RED, BLACK, BLUE), store), path)

    asyncio.run(write())
    return path


def search(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["search", *arguments])


def test_look_alikes_come_nearest_first_each_with_the_verdicts_on_it(file: Path) -> None:
    done = search(RED.key.sha256, "--input", str(file), "--top", "2", "--format", "jsonl")
    assert done.exit_code == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["rank"], first["sha256"], first["cosine"]) == (1, RED.key.sha256, 1.0)
    assert [said["item_id"] for said in first["verdicts"]] == ["item-b", "item-a"]
    assert [said["tenant"] for said in first["verdicts"]] == [None, "shop"]
    assert first["verdicts"][0]["action"] == "block"
    assert first["verdicts"][0]["decided_by"] == "red"
    assert (second["rank"], second["sha256"]) == (2, BLACK.key.sha256)
    assert done.stderr == "2 nearest of 3 images\n"


def test_table_says_who_saw_what_and_what_was_decided(file: Path) -> None:
    done = search(RED.key.sha256, "--input", str(file), "--format", "table")
    assert done.exit_code == 0, done.stderr
    assert "item-b and 1 more" in done.stdout
    assert "2026-11-19 12:00" in done.stdout
    assert BLUE.key.sha256 in done.stdout


def test_image_of_which_nothing_is_kept_is_told_so(file: Path) -> None:
    done = search("0" * 64, "--input", str(file))
    assert done.exit_code == 2
    assert "no embedding of the image 0000" in done.stderr


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("incident.jpg", "incident.jpg is no image file; check its path"),
        ("/", "/ is no image file"),
        (" ", "there is nothing to search for"),
    ],
)
def test_what_cannot_be_searched_for_is_told_before_anything_is_read(
    query: str, sentence: str
) -> None:
    done = search(query, "--input", "absent.parquet")
    assert done.exit_code == 2
    assert sentence in done.stderr


async def test_embeddings_of_another_model_are_not_looked_at() -> None:
    other = embedding("other", "red", model="sha256:" + "0" * 64)
    with EmbeddingStore() as store:
        past = await past_of(
            records(verdict("a", RED, POLICY), verdict("b", other, POLICY)),
            records(RED, other),
            store,
        )
        info = ENCODER.info
        places = images_of(past, info.weights_digest, info.preprocess.digest)
        assert [store[place].key.sha256 for place in places.tolist()] == [RED.key.sha256]
        assert not len(images_of(past, digest_of("other"), info.preprocess.digest))
        assert places.dtype == np.intp
