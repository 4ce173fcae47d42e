"""The past, as workers leave it on the topics: tried, exported, decided anew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.scene import (
    KAFKA,
    RED_AND_GREEN,
    all_verdicts,
    eventually,
    fake_worker,
    gallery,
    requests_of,
    verdicts_on,
    write_policy,
)
from tests.fakes import FakeEncoder
from tests.past_records import compiled, embedding, records, verdict
from tests.policy_factory import category
from worker.commands.embeddings import export
from worker.commands.policy_backtest import BacktestOptions, run_backtest
from worker.commands.redecide import RedecideOptions, redecide
from worker.commands.render import Format
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, stage
from worker.errors import ErrorCode, Misconfigured
from worker.past.verdict_table import VerdictTable, in_force
from worker.publish import KafkaPublisher
from worker.schema import Verdict, now
from worker.settings import Settings
from worker.settings_load import load_settings
from worker.types import Embedding, Message

PICTURES = gallery(12)  # four each of red, green, blue
MISSING = {"/missing.jpg": Reply(status=HTTPStatus.NOT_FOUND)}
RED, _ = RED_AND_GREEN
#: Green is no longer reviewed, blue is blocked.
NEW = (
    RED,
    category("blue", prompts=["blue"], contrast=["red", "green", "white", "black"], block=0.9,
             block_uncalibrated=True),
)  # fmt: skip


def load(settings: Settings) -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """With a past: requests that a worker judged, which is gone."""

    async def judge(on: Stage) -> None:
        async with Exchange(on) as exchange:
            await verdicts_on(exchange, requests_of(on, [*PICTURES, *MISSING]))

    write_policy(tmp_path / "policy.yaml")
    with stage({**PICTURES, **MISSING}, tmp_path / "policy.yaml", broker=KAFKA) as on:
        with fake_worker(on):
            asyncio.run(judge(on))
        for name, value in on.environment().items():
            monkeypatch.setenv(name, value)
        yield on


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """With the same past, written by hand in a fraction of the time."""
    write_policy(tmp_path / "policy.yaml")
    with stage({}, tmp_path / "policy.yaml", broker=KAFKA) as on:
        asyncio.run(write_past(on))
        for name, value in on.environment().items():
            monkeypatch.setenv(name, value)
        yield on


async def write_past(on: Stage) -> None:
    then = compiled(*RED_AND_GREEN)
    values: list[tuple[str, Verdict | Embedding]] = []
    for n, name in enumerate(PICTURES):
        seen = embedding(name, ("red", "green", "blue")[n % 3])
        said = verdict(name, seen, then, tenant="t", at=now())
        values += [(on.topics.embeddings_topic, seen), (on.topics.verdicts_topic, said)]
    [missing] = MISSING
    said = verdict(missing, ErrorCode.HTTP_CLIENT_ERROR, then, at=now())
    publisher = KafkaPublisher(bootstrap=on.broker, client_id="past")
    await publisher.start()
    for topic, value in (*values, (on.topics.verdicts_topic, said)):
        [record] = records(value)
        await publisher.publish(Message(topic, record.key, record.value))
    await publisher.close()


@pytest.fixture
def new(tmp_path: Path) -> Path:
    write_policy(tmp_path / "new.yaml", *NEW)
    return tmp_path / "new.yaml"


async def backtested(
    capsys: pytest.CaptureFixture[str], options: BacktestOptions
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, flips in the order of their requests, and what was told."""
    capsys.readouterr()
    code = await run_backtest(load_settings(), options, Format.JSONL, load)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    return code, sorted(lines, key=lambda line: str(line["request_id"])), err


async def counting(on: Stage) -> dict[str, Verdict]:
    """The verdict in force of each request."""
    verdicts = await all_verdicts(on)
    table = VerdictTable()
    for record in records(*verdicts):
        table.add(record)
    ids = in_force(table.table()).verdicts["verdict_id"].to_pylist()
    return {v.request_id: v for v in verdicts if str(v.verdict_id) in ids}


async def redecided(policy: Path, **options: Any) -> None:
    options = {"since": "1h", "rate": 1000.0, **options}
    await redecide(load_settings(), RedecideOptions(policy, **options), Format.TABLE, load)


def slow_redecide(policy: Path) -> subprocess.Popen[str]:
    """Three verdicts a second, on everything."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.fake_redecide", str(policy), "3"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_a_backtest_from_the_topics_is_the_one_from_their_export(
    lived: Stage, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "past.parquet", tmp_path / "page.html"
    code, flips, told = await backtested(capsys, BacktestOptions(new, report=page))
    assert code == 0
    assert [(flip["before"], flip["after"]) for flip in flips].count(("review", "allow")) == 4
    assert [(flip["before"], flip["after"]) for flip in flips].count(("allow", "block")) == 4
    assert len(flips) == 8
    assert "8 of 12 decisions flip" in told
    assert "1 could not be examined then (http_client_error)" in told
    assert "allow → block" in page.read_text()

    await export(load_settings(), "1h", None, out)
    again = await backtested(capsys, BacktestOptions(new, inputs=[out]))
    assert again[:2] == (0, flips)


async def test_too_many_flips_exit_with_one(
    on: Stage, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = await backtested(capsys, BacktestOptions(new, max_flips=0.5))
    assert code == 1
    code, _, _ = await backtested(capsys, BacktestOptions(new, max_flips=0.7))
    assert code == 0


async def test_thumbnails_are_shown_of_what_is_still_the_same_image(
    lived: Stage, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, urls = tmp_path / "page.html", tmp_path / "urls.csv"
    (tmp_path / "2.jpg").write_bytes(PICTURES["/2.jpg"].body)
    (tmp_path / "5.jpg").write_bytes(PICTURES["/8.jpg"].body)
    urls.write_text(
        f"item_id,url,path\n/1.jpg,{lived.images.url('/1.jpg')}?key=secret,\n/2.jpg,,2.jpg\n"
        "/5.jpg,,5.jpg\n/8.jpg,,absent.jpg\n/11.jpg,http://10.0.0.1/x.jpg?key=secret,\n"
    )
    await backtested(capsys, BacktestOptions(new, report=page, urls=urls))
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2
    assert text.count("another image is there by now") == 1
    assert "it cannot be read" in text
    assert "secret" not in text


async def test_what_makes_no_sense_is_refused_in_a_sentence(
    on: Stage, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_policy(tmp_path / "other.yaml", *NEW, id="other")
    with pytest.raises(Misconfigured, match="there are 13 by 'test'; name one with --of"):
        await backtested(capsys, BacktestOptions(tmp_path / "other.yaml"))
    code, flips, _ = await backtested(capsys, BacktestOptions(tmp_path / "other.yaml", of="test"))
    assert (code, len(flips)) == (0, 8)
    write_policy(tmp_path / "model.yaml", *NEW, model="another")
    with pytest.raises(Misconfigured, match="written for the model 'another'"):
        await backtested(capsys, BacktestOptions(tmp_path / "model.yaml"))
    with pytest.raises(Misconfigured, match="cannot be written"):
        await backtested(capsys, BacktestOptions(new, report=tmp_path / "absent" / "x.html"))


async def test_redecide_supersedes_what_changes_and_nothing_else(
    on: Stage, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await counting(on)
    await redecided(new, dry_run=True)
    assert await counting(on) == before
    await redecided(new)
    after = await counting(on)
    changed = {name for name in before if after[name] != before[name]}
    greens_and_blues = {f"/{n}.jpg" for n in range(12) if n % 3}
    assert changed == greens_and_blues
    for name in changed:
        assert after[name].supersedes == before[name].verdict_id
        assert after[name].image == before[name].image
    assert {after[f"/{n}.jpg"].action for n in (1, 4, 7, 10)} == {"allow"}
    assert {after[f"/{n}.jpg"].action for n in (2, 5, 8, 11)} == {"block"}


async def test_a_second_run_publishes_nothing(
    on: Stage, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for everything in (False, True, True):
        await redecided(new, everything=everything)
    verdicts = await all_verdicts(on)
    assert len(verdicts) == 13 + 12  # all that was examined, once
    assert len({verdict.verdict_id for verdict in verdicts}) == len(verdicts)
    redone = {v.request_id: v for v in verdicts if v.worker.startswith("redecide ")}
    assert redone["/0.jpg"].metadata == {"of": "/0.jpg"}
    assert redone["/0.jpg"].tenant == "t"


async def test_a_rollback_brings_the_decisions_back(
    on: Stage, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await counting(on)
    await redecided(new)
    await redecided(tmp_path / "policy.yaml")
    after = await counting(on)
    assert {name: verdict.action for name, verdict in after.items()} == {
        name: verdict.action for name, verdict in before.items()
    }


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
async def test_a_run_that_was_stopped_is_gone_on_with(
    on: Stage, new: Path, end: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with slow_redecide(new) as run:
        async with asyncio.timeout(60):
            while len(await all_verdicts(on)) == 13:
                assert run.poll() is None
        run.send_signal(end)
        await eventually(lambda: run.poll() is not None, "it ends")
        told = run.stderr.read() if run.stderr else ""
    published = len(await all_verdicts(on)) - 13
    assert 0 < published < 12
    if end is signal.SIGINT:
        assert run.returncode == 130
        assert "run it again for the rest" in told
        assert "Traceback" not in told
    await redecided(new, everything=True)
    verdicts = await all_verdicts(on)
    assert len(verdicts) == 13 + 12
    assert len({verdict.verdict_id for verdict in verdicts}) == len(verdicts)


async def test_a_request_that_is_judged_meanwhile_is_left_to_that_verdict(
    on: Stage, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one supersedes it while the model is loading."""
    before = (await counting(on))["/1.jpg"]
    write_policy(new.with_name("third.yaml"), *NEW, contrast=["an ordinary photo"])
    third = load_settings({"policies": (str(new.with_name("third.yaml")),)})
    options = RedecideOptions(new, "1h", rate=1000.0)

    def load_slowly(settings: Settings) -> FakeEncoder:
        other = RedecideOptions(new.with_name("third.yaml"), "1h", rate=1000.0)
        asyncio.run(redecide(third, other, Format.TABLE, load))
        return load(settings)

    await redecide(load_settings(), options, Format.TABLE, load_slowly)
    assert "were judged by a worker meanwhile" in capsys.readouterr().err
    after = (await counting(on))["/1.jpg"]
    assert after.supersedes == before.verdict_id
    assert len(await all_verdicts(on)) == 13 + 8
