"""``imagewarden publish``, with and without waiting for the verdicts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import (
    KAFKA,
    all_records,
    closed_port,
    command,
    fake_worker,
    picture,
    request,
    write_policy,
)
from worker.demo.image_server import Reply
from worker.demo.stage import Stage, stage
from worker.embedded import embedded_broker
from worker.schema import Verdict, parse_request


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With a worker, and a red, a blue and a broken picture."""
    policy: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    write_policy(policy)
    replies = {
        "/red.jpg": Reply(picture("red")),
        "/blue.jpg": Reply(picture("blue")),
        "/page.jpg": Reply(b"<!doctype html>"),
    }
    with stage(replies, policy, broker=KAFKA) as on, fake_worker(on):
        yield on


async def test_urls_and_json_become_requests_on_the_topic(on: Stage) -> None:
    given = request("by-hand", "https://example.com/2.jpg")
    done = command(
        *("publish", "--tenant", "shop", "https://example.com/1.jpg?token=SECRET", "-"),
        on=on,
        stdin=f"{given.decode()}\n\nhttps://example.com/3.jpg\n",
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"published 3 to {on.topics.requests_topic}\n"
    records = await all_records(on, on.topics.requests_topic)
    requests = [parse_request(record.value, max_bytes=10_000) for record in records]
    assert {(one.url, one.tenant) for one in requests} == {
        ("https://example.com/1.jpg?token=SECRET", "shop"),
        ("https://example.com/2.jpg", None),
        ("https://example.com/3.jpg", "shop"),
    }
    assert len({one.request_id for one in requests}) == 3
    for record, one in zip(records, requests, strict=True):
        assert record.key == one.item_id.encode()
        assert "SECRET" not in one.item_id


async def test_a_request_given_twice_is_published_twice(on: Stage) -> None:
    given = request("by-hand", "https://example.com/2.jpg").decode()
    done = command("publish", "-", on=on, stdin=f"{given}\n{given}\n")
    assert done.stderr == f"published 2 to {on.topics.requests_topic}\n"
    assert len(await all_records(on, on.topics.requests_topic)) == 2


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        (["/blue.jpg"], 0),
        (["/blue.jpg", "/red.jpg"], 1),
        (["/blue.jpg", "/red.jpg", "/page.jpg"], 3),
    ],
)
def test_waiting_prints_the_verdicts_and_ends_with_what_they_come_to(
    served: Stage, paths: list[str], code: int
) -> None:
    urls = [served.images.url(path) for path in paths]
    done = command("publish", "--wait", "50", *urls, on=served)
    assert (done.returncode, done.stderr) == (code, "")
    verdicts = [Verdict.model_validate_json(line) for line in done.stdout.splitlines()]
    decisions = {"/blue.jpg": "allow", "/red.jpg": "block", "/page.jpg": "undetermined"}
    assert {verdict.item_id: verdict.decision for verdict in verdicts} == {
        served.images.url(path): decisions[path] for path in paths
    }


def test_waiting_prints_a_table_for_people(served: Stage) -> None:
    url = served.images.url("/red.jpg?token=SECRET")
    done = command("publish", "--wait", "50", "--format", "table", url, on=served)
    assert (done.returncode, done.stderr) == (1, "")
    assert served.images.url("/red.jpg") in done.stdout
    assert "block" in done.stdout
    assert "SECRET" not in done.stdout


def test_what_nobody_answers_is_told_after_the_wait(on: Stage) -> None:
    done = command("publish", "--wait", "0.5", "https://example.com/1.jpg", on=on)
    assert done.returncode == 3
    assert "1 of 1 had no verdict within 0.5 s" in done.stderr


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", "nothing to publish"),
        ("red.jpg", "neither a URL nor a JSON request"),
        (json.dumps({"schema_version": 1}), "not a request"),
    ],
)
def test_what_is_no_request_is_refused_before_anything_connects(lines: str, told: str) -> None:
    address = f"127.0.0.1:{closed_port()}"
    done = command("publish", stdin=lines, settings={"KAFKA__BOOTSTRAP": address})
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def waiting_at(address: str) -> subprocess.CompletedProcess[str]:
    arguments = ("publish", "--wait", "5", "https://example.com/")
    return command(*arguments, settings={"KAFKA__BOOTSTRAP": address})


def test_a_broker_that_is_away_is_told_in_a_sentence() -> None:
    address = f"127.0.0.1:{closed_port()}"
    done = waiting_at(address)
    assert (done.returncode, done.stdout) == (3, "")
    sentence = done.stderr.splitlines()[-1]  # the client's own log lines come before it
    assert sentence.startswith(f"imagewarden: no Kafka broker answers at {address}")


def test_a_topic_that_is_missing_is_told_in_a_sentence() -> None:
    with embedded_broker() as address:
        done = waiting_at(address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imagewarden: there is no topic moderation.verdicts")
    assert len(done.stderr.splitlines()) == 1
