"""``imagewarden feedback``: what people say of verdicts becomes metrics, or a table."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.e2e.scene import (
    closed_port,
    command,
    ended,
    eventually,
    fake_worker,
    gallery,
    logged,
    metric,
    probe,
    requests_of,
    terminated,
    verdicts_on,
    write_policy,
)
from worker.demo.stage import Exchange, Stage, Worker, starting_worker, worker_process
from worker.embedded import embedded_broker
from worker.publish import KafkaPublisher
from worker.schema import Verdict
from worker.types import Message

COMMAND = (sys.executable, "-m", "worker", "feedback")


@pytest.fixture
async def judged(on: Stage) -> dict[str, Verdict]:
    """Twelve images, by path: four red ones are blocked, four green reviewed, four blue allowed."""
    on.images.replies.update(gallery(12))
    with fake_worker(on):
        async with Exchange(on) as exchange:
            return await verdicts_on(exchange, requests_of(on, on.images.replies))


@pytest.fixture
async def publisher(on: Stage) -> AsyncIterator[KafkaPublisher]:
    publisher = KafkaPublisher(bootstrap=on.broker, client_id="people")
    await publisher.start()
    yield publisher
    await publisher.close()


def says(item: str, shows: bool, category: str = "red", **fields: object) -> bytes:
    content = {"schema_version": 1, "item_id": item, "category": category, "shows": shows}
    return json.dumps(content | fields).encode()


async def tell(publisher: KafkaPublisher, on: Stage, *told: bytes) -> None:
    for value in told:
        await publisher.publish(Message(on.topics.feedback_topic, None, value))


def following(on: Stage) -> AbstractContextManager[Worker]:
    return worker_process(on, command=COMMAND)


def rate(process: Worker, name: str, category: str = "red", action: str = "block") -> float:
    return metric(process, f"imagewarden_feedback_{name}", category=category, action=action)


#: People agree with three of the four blocked ones, and find one that was let through.
WORDS = (
    *(says(f"/{number}.jpg", shows=number != 9) for number in (0, 3, 6, 9)),
    says("/2.jpg", shows=True, sampled=0.5),
    says("/5.jpg", shows=False, sampled=0.5),
)


async def test_precision_and_recall_are_served_as_people_speak(
    on: Stage, judged: dict[str, Verdict], publisher: KafkaPublisher
) -> None:
    assert {judged[f"/{number}.jpg"].decision for number in (0, 3, 6, 9)} == {"block"}
    await tell(publisher, on, WORDS[0])
    with following(on) as process:
        assert probe(process, "readyz")[0] == 200
        assert rate(process, "precision") == 1.0
        await tell(publisher, on, *WORDS[1:], b"not JSON")
        await eventually(lambda: rate(process, "recall") > 0, "recall is known")
        assert rate(process, "precision") == 0.75
        assert rate(process, "recall") == 0.6  # 3 of 3 + 1 / .5
        assert rate(process, "recall_low") < 0.6 < rate(process, "recall_high")
        labels = {"policy": "test", "category": "red", "action": "allow", "shows": "true"}
        assert metric(process, "imagewarden_feedback_judged", **labels) == 1
        assert metric(process, "imagewarden_feedback_malformed_total", reason="not_json") == 1
        assert probe(process, "livez")[0] == 200
        assert await terminated(process) == 0


async def test_a_verdict_that_came_while_it_runs_is_matched(
    on: Stage, publisher: KafkaPublisher
) -> None:
    on.images.replies.update(gallery(1))
    await tell(publisher, on, says("/0.jpg", shows=True, request_id="/0.jpg"))
    with following(on) as process:
        assert metric(process, "imagewarden_feedback_unmatched") == 1
        with fake_worker(on):
            async with Exchange(on) as exchange:
                verdicts = await verdicts_on(exchange, requests_of(on, ["/0.jpg"]))
        answered = str(verdicts["/0.jpg"].verdict_id)
        await tell(publisher, on, says("/0.jpg", shows=True, verdict_id=answered))
        await eventually(lambda: rate(process, "precision") == 1.0, "it is matched")
        assert metric(process, "imagewarden_feedback_unmatched") == 0


async def test_once_prints_what_is_known_and_passes_over_what_is_malformed(
    on: Stage, judged: dict[str, Verdict], publisher: KafkaPublisher
) -> None:
    await tell(publisher, on, *WORDS, b"{}", says("/nobody.jpg", shows=True))
    done = command("feedback", "--once", on=on)
    assert done.returncode == 0
    assert '"no feedback"' in done.stderr
    assert "1 more answer no verdict that is still there" in done.stderr
    review, block = map(json.loads, done.stdout.splitlines())
    assert (review["action"], block["action"]) == ("review", "block")
    assert block["precision"]["value"] == 0.75
    assert block["recall"]["value"] == 0.6
    assert block["judged"]["allow"] == {"shows": 1, "others": 1}
    table = command("feedback", "--once", "--format", "table", on=on)
    assert table.returncode == 0
    assert "75.0%" in table.stdout


async def test_what_was_decided_before_the_window_is_left_out(
    on: Stage, judged: dict[str, Verdict], publisher: KafkaPublisher
) -> None:
    old = judged["/3.jpg"]
    words = says(
        "/3.jpg",
        shows=False,
        decided_at="2001-01-01T00:00:00Z",
        verdict_id=str(old.verdict_id),
    )
    await tell(publisher, on, WORDS[0], words)
    done = command("feedback", "--once", "--window", "1h", on=on)
    assert json.loads(done.stdout.splitlines()[1])["judged"]["block"] == {"shows": 1, "others": 0}


def test_without_feedback_it_says_so(on: Stage) -> None:
    done = command("feedback", "--once", "--format", "table", on=on)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no feedback that answers a verdict on {on.topics.feedback_topic}\n"


def test_nothing_is_calibrated_without_feedback(on: Stage) -> None:
    before = on.policy.read_bytes()
    done = command("policy", "calibrate", str(on.policy), "--from-feedback", on=on)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imagewarden: there is no feedback that answers a verdict")
    assert on.policy.read_bytes() == before


async def test_feedback_on_another_policy_calibrates_nothing(
    on: Stage, judged: dict[str, Verdict], publisher: KafkaPublisher
) -> None:
    await tell(publisher, on, *WORDS)
    other = on.folder / "other.yaml"
    write_policy(other, id="other")
    done = command("policy", "calibrate", str(other), "--from-feedback", on=on)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no feedback answers a verdict by a category of the policy 'other'" in done.stderr
    assert "there is some on red of test" in done.stderr


async def test_it_ends_at_once_even_while_it_starts(on: Stage) -> None:
    with starting_worker(on, command=COMMAND) as process:
        await eventually(lambda: logged(process, "serving"), "it starts")
        assert await terminated(process) == 0


@pytest.fixture
def bare_broker() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


def test_a_topic_that_is_missing_is_told_in_a_sentence(bare_broker: str) -> None:
    done = command("feedback", "--once", settings={"KAFKA__BOOTSTRAP": bare_broker})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("imagewarden: there is no topic moderation.feedback")


@pytest.mark.parametrize("window", ["30", "0d", "2999-01-01"])
def test_a_window_that_is_no_time_is_refused_before_anything_connects(window: str) -> None:
    address = f"127.0.0.1:{closed_port()}"
    done = command("feedback", "--window", window, settings={"KAFKA__BOOTSTRAP": address})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"imagewarden: --window {window}") or repr(window) in done.stderr


async def test_an_address_that_is_taken_is_told_in_a_sentence(on: Stage) -> None:
    port = on.images.port
    settings = {"IMAGEWARDEN_HTTP__PORT": str(port)}
    with starting_worker(on, command=COMMAND, settings=settings) as process:
        assert await ended(process) == 2
        assert f"cannot serve metrics on 127.0.0.1:{port}" in process.log.read_text()
