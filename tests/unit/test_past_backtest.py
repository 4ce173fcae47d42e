"""What a policy would have changed, counted and shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.markup import Page
from tests.past_records import (
    ENCODER,
    NOON,
    compiled,
    embedding,
    green,
    past_of,
    records,
    red,
    verdict,
)
from tests.policy_factory import policy_bytes
from worker.cli import cli
from worker.commands.flip_thumbnails import Place, read_places
from worker.compiled import CompiledPolicy
from worker.errors import ErrorCode, Misconfigured
from worker.past.backtest import NO_TENANT, Backtest, Direction, backtest
from worker.past.backtest_page import backtest_page
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past
from worker.schema import BrakeRef

THEN = compiled()
RED, GREEN, BLUE = (embedding(colour, colour) for colour in ("red", "green", "blue"))


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


async def a_past(store: EmbeddingStore, by: CompiledPolicy = THEN, **changes: Any) -> Past:
    """Four reds, two of them of a tenant, two greens and a blue; the greens a day later."""
    said = [
        *(verdict(f"r{n}", RED, by, tenant=(None, "t")[n % 2], **changes) for n in range(4)),
        *(verdict(f"g{n}", GREEN, by, at=NOON + timedelta(days=1)) for n in range(2)),
        verdict("b", BLUE, by),
    ]
    return await past_of(records(*said), records(RED, GREEN, BLUE), store)


def counts(found: Backtest) -> dict[str, int]:
    return {str(direction): number for direction, number in found.flips.items()}


async def test_the_same_policy_changes_nothing(store: EmbeddingStore) -> None:
    found = backtest(await a_past(store), THEN, ENCODER.info)
    assert (found.requests, found.replayed, found.flips) == (7, 7, {})
    assert found.share.value == 0.0 < found.share.high


async def test_flips_are_counted_by_direction_category_and_tenant(store: EmbeddingStore) -> None:
    new = compiled(red(block=1.0), green(review=1.0))
    found = backtest(await a_past(store), new, ENCODER.info)
    assert counts(found) == {"block → review": 4, "review → allow": 2}
    by_category = {group.name: (group.images, group.flipped) for group in found.categories}
    assert by_category == {"red": (4, 4), "green": (2, 2)}
    by_tenant = {group.name: (group.images, group.flipped) for group in found.tenants}
    assert by_tenant == {"t": (2, 2), NO_TENANT: (5, 4)}


async def test_what_gets_stricter_is_laid_to_the_category_that_asks_now(
    store: EmbeddingStore,
) -> None:
    mild = compiled(red(review=1.0, block=1.0), green(review=1.0))
    past = await a_past(store, mild)
    found = backtest(past, THEN, ENCODER.info)
    assert counts(found) == {"allow → block": 4, "allow → review": 2}
    assert {flip.category for flip in found.flipped[:4]} == {"red"}
    # As the verdict said it then, and as the same prompts say it now
    for flip in found.flipped:
        assert flip.probability_before == pytest.approx(flip.probability_after)


async def test_an_image_that_was_asked_about_often_is_shown_once_for_a_tenant(
    store: EmbeddingStore,
) -> None:
    found = backtest(await a_past(store), compiled(red(block=1.0), green()), ENCODER.info)
    assert sum(found.flips.values()) == len(found.flipped) == 4
    assert sorted((flip.sha256, flip.tenant or "") for flip in found.shown) == [
        (RED.key.sha256, ""),
        (RED.key.sha256, "t"),
    ]


async def test_days_have_the_shares_before_and_after(store: EmbeddingStore) -> None:
    found = backtest(await a_past(store), compiled(red(block=1.0)), ENCODER.info)
    shares = [
        (day.day.day, day.images, day.before["block"].value, day.after["block"].value)
        for day in found.days
    ]
    assert shares == [(20, 5, 0.8, 0.0), (21, 2, 0.0, 0.0)]


async def test_against_another_policy_only_the_edit_counts(store: EmbeddingStore) -> None:
    loose = compiled(red(block=1.0))
    new = compiled(red(block=1.0), green())
    past = await a_past(store)
    found = backtest(past, new, ENCODER.info, against=loose)
    assert counts(found) == {"allow → review": 2}
    assert all(flip.category == "green" for flip in found.flipped)
    assert all(math.isnan(flip.probability_before) for flip in found.flipped)


async def test_what_was_not_decided_again_has_no_part(store: EmbeddingStore) -> None:
    said = [verdict("a", RED, THEN), verdict("b", ErrorCode.HOST_UNAVAILABLE, THEN)]
    past = await past_of(records(*said), records(RED), store)
    found = backtest(past, compiled(on_error="block"), ENCODER.info)
    assert (found.requests, found.replayed) == (2, 1)
    assert found.left_out == {"could not be examined then (host_unavailable)": 1}
    assert any("'block' by on_error" in note for note in found.notes)


async def test_a_brake_is_told_and_does_not_count_as_a_flip(store: EmbeddingStore) -> None:
    brake = BrakeRef(share=0.5, requests=200, scope="fleet")
    past = await a_past(store, brake=brake, action="review", decision="review")
    found = backtest(past, THEN, ENCODER.info)
    assert found.flips == {}
    assert any("4 blocks were turned into reviews" in note for note in found.notes)


# ---------------------------------------------------------------- the page


async def test_the_page_shows_what_was_found(store: EmbeddingStore) -> None:
    past = await a_past(store)
    new = compiled(red(block=1.0), green(review=1.0))
    found = backtest(past, new, ENCODER.info)
    pictures = [b"\xff\xd8jpeg", "another image is there by now", None]
    page = backtest_page(found, [new.policy, THEN.policy], past.window, pictures)
    for part in ("block → review", "review → allow", "2026-11-20", "data:image/jpeg;base64,"):
        assert part in page
    assert "another image is there by now" in page
    read = Page(page)
    assert read.problems == read.loaded() == read.dangling() == []


async def test_a_page_without_flips_is_a_page(store: EmbeddingStore) -> None:
    past = await a_past(store)
    page = backtest_page(backtest(past, THEN, ENCODER.info), [THEN.policy], None, [])
    assert "what the verdicts said then" in page
    read = Page(page)
    assert read.problems == read.loaded() == read.dangling() == []


async def test_without_any_pictures_the_page_leaves_no_room_for_them(store: EmbeddingStore) -> None:
    found = backtest(await a_past(store), compiled(red(block=1.0)), ENCODER.info)
    assert "no thumbnail" not in backtest_page(found, [THEN.policy], None, [None])


async def test_names_from_outside_are_escaped_in_the_page(store: EmbeddingStore) -> None:
    hostile = '<script>alert("x")</script>&{{ 7 * 7 }}'
    said = verdict("a", RED, THEN, tenant=hostile, item_id=hostile, request_id=hostile)
    past = await past_of(records(said), records(RED), store)
    found = backtest(past, compiled(red(block=1.0)), ENCODER.info)
    page = backtest_page(found, [THEN.policy], None, [hostile])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page


# ---------------------------------------------------------------- where pictures are


def test_places_go_by_digest_or_item_and_are_urls_or_paths(tmp_path: Path) -> None:
    digest = "0" * 64
    file = tmp_path / "urls.csv"
    file.write_text(
        f"sha256,item_id,url,path\n{digest},,https://host/x.jpg?sig=1,\n,item 1,,photos/1.jpg\n"
    )
    assert read_places(file) == {
        digest: Place(url="https://host/x.jpg?sig=1"),
        "item 1": Place(path=tmp_path / "photos/1.jpg"),
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "it has none"),
        (b"name,url\na,b\n", "needs a column sha256 or item_id"),
        (b"item_id,label\na,b\n", "and a column url or path"),
        (b"item_id,url\na,\n", r"urls.csv:2: a line names"),
        (b"item_id,url\na,http://x\n,http://y\n", r"urls.csv:3: a line names"),
        (b"item_id,url\na\n", r"urls.csv:2: a line names"),
        (b"item_id,url,path\na,http://x,y.jpg\n", r"urls.csv:2: a line names"),
        (b'item_id,url\n"a,b\n', "is no CSV"),
        (b"item_id,url\n\xff,x\n", "not UTF-8"),
    ],
)
def test_a_csv_that_names_no_places_is_refused(text: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "urls.csv"
    file.write_bytes(text)
    with pytest.raises(Misconfigured, match=why):
        read_places(file)


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read"):
        read_places(tmp_path / "absent.csv")


def test_directions_read_as_they_are_said() -> None:
    assert str(Direction("allow", "block")) == "allow → block"


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ["embeddings", "export", "--since", "yesterday", "--out", "x.parquet"],
            2,
            "is no time; write",
        ),
        (["embeddings", "export", "--out", "absent/x.parquet"], 2, "there is no folder absent"),
        (["embeddings", "export", "--out", "policy.yaml"], 2, "name a file that ends in .parquet"),
        (["embeddings", "export", "--out", "x.parquet"], 3, "no Kafka broker answers"),
        (["redecide", "--policy", "p.yaml", "--since", "2d", "--until", "3d"], 2, "nothing lies"),
        (["redecide", "--policy", "absent.yaml", "--since", "2d"], 2, "absent.yaml"),
        (["policy", "backtest", "p.yaml", "--since", "2999-01-01"], 2, "in the future"),
        (["policy", "backtest", "p.yaml", "--input", "p.yaml"], 2, "cannot be read as Parquet"),
        (["policy", "backtest", "p.yaml", "--input", "."], 2, "no .parquet file in ."),
        (["policy", "backtest", "p.yaml", "--input", "p", "--until", "1d"], 2, "needs --since"),
        (["policy", "backtest", "p.yaml", "--urls", "p.yaml"], 2, "needs a column sha256"),
        (["policy", "backtest", "p.yaml"], 3, "no Kafka broker answers"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEWARDEN_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    (tmp_path / "p.yaml").write_bytes(policy_bytes(red()))
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
