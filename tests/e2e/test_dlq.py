"""``imagewarden dlq``: what was not a request, listed, shown, and put on its topic again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scene import (
    KAFKA,
    all_records,
    answers_to,
    command,
    fake_worker,
    request,
    write_policy,
)
from worker.demo.stage import Exchange, Stage, stage

_MESSAGE_MAX_BYTES = 10_000
LETTERS = {
    "not-json": b'{"schema_version": 1, "url": ',
    "no-image": request("no-image"),
    "too-large": request("too-large", "http://127.0.0.1/" + "x" * 5_000),
    "not-kept": request("not-kept", "http://127.0.0.1/" + "x" * _MESSAGE_MAX_BYTES),
}
REASONS = {
    "not-json": "not_json",
    "no-image": "invalid",
    "too-large": "too_large",
    "not-kept": "too_large",
}


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With dead letters, and without the worker that wrote them."""
    policy: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    write_policy(policy)

    async def bury(on: Stage) -> None:
        async with Exchange(on) as exchange:
            await answers_to(exchange, LETTERS)

    with stage({}, policy, broker=KAFKA) as on:
        with fake_worker(
            on,
            KAFKA__REQUEST_MAX_BYTES="4000",
            KAFKA__MESSAGE_MAX_BYTES=str(_MESSAGE_MAX_BYTES),
        ):
            asyncio.run(bury(on))
        yield on


@pytest.fixture(scope="module")
def places(on: Stage) -> dict[str, str]:
    """PARTITION:OFFSET of each letter, by name."""
    sizes = {len(value): name for name, value in LETTERS.items()}
    return {sizes[letter["value_bytes"]]: letter["letter"] for letter in listed(on)}


def listed(on: Stage, *arguments: str) -> list[dict[str, Any]]:
    done = command("dlq", "list", *arguments, on=on)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


async def requested(on: Stage) -> Counter[tuple[bytes | None, bytes | None]]:
    """Keys and values on the request topic."""
    records = await all_records(on, on.topics.requests_topic)
    assert all(record.headers == () for record in records)
    return Counter((record.key, record.value) for record in records)


def test_all_are_listed_with_their_reason_and_where_they_came_from(on: Stage) -> None:
    letters = listed(on)
    assert Counter(letter["reason"] for letter in letters) == Counter(REASONS.values())
    assert {letter["source"]["topic"] for letter in letters} == {on.topics.requests_topic}


def test_a_reason_chooses_among_them(on: Stage) -> None:
    assert {letter["reason"] for letter in listed(on, "--reason", "too_large")} == {"too_large"}
    assert listed(on, "--reason", "empty") == []


def test_the_table_names_each_by_its_place(on: Stage, places: dict[str, str]) -> None:
    done = command("dlq", "list", "--format", "table", on=on)
    assert (done.returncode, done.stderr) == (0, "")
    for place in places.values():
        assert place in done.stdout
    for reason in REASONS.values():
        assert reason in done.stdout


def test_one_is_shown_with_its_value_as_it_came(on: Stage, places: dict[str, str]) -> None:
    done = command("dlq", "show", places["not-json"], on=on)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"reason": "not_json"' in done.stdout
    assert "key: b'not-json'" in done.stdout
    assert LETTERS["not-json"].decode() in done.stdout


def test_one_whose_value_was_not_kept_says_so(on: Stage, places: dict[str, str]) -> None:
    done = command("dlq", "show", places["not-kept"], on=on)
    assert done.returncode == 0
    assert "only its digest was kept" in done.stdout


@pytest.mark.parametrize("arguments", [["show", "0:999"], ["replay", "0:999"]])
def test_a_place_with_no_letter_is_told_in_a_sentence(on: Stage, arguments: list[str]) -> None:
    done = command("dlq", *arguments, on=on)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imagewarden: no dead letter 0:999;")
    assert len(done.stderr.splitlines()) == 1


async def test_a_replayed_letter_is_the_record_as_it_came(
    on: Stage, places: dict[str, str]
) -> None:
    before = await requested(on)
    done = command("dlq", "replay", places["not-json"], places["no-image"], on=on)
    assert (done.returncode, done.stderr) == (0, "replayed 2 of 2\n")
    replayed = [(name.encode(), LETTERS[name]) for name in ("not-json", "no-image")]
    assert await requested(on) - before == Counter(replayed)


async def test_all_of_a_reason_are_replayed_but_those_whose_value_was_not_kept(
    on: Stage, places: dict[str, str]
) -> None:
    before = await requested(on)
    done = command("dlq", "replay", "--all", "--reason", "too_large", on=on)
    assert done.returncode == 0
    assert f"{places['not-kept']}: left, as its value was not kept" in done.stderr
    assert "replayed 1 of 2" in done.stderr
    assert await requested(on) - before == Counter([(b"too-large", LETTERS["too-large"])])


def test_an_empty_topic_has_none_and_says_so(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.yaml")
    with stage({}, tmp_path / "policy.yaml", broker=KAFKA) as on:
        done = command("dlq", "list", "--format", "table", on=on)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no dead letters on {on.topics.dead_letters_topic}\n"
