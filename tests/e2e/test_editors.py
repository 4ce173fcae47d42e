"""The README's chapter for people who write policies: each command in it, with what it prints."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.scene import KAFKA, all_verdicts, requests_of, verdicts_on
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, stage, worker_process
from worker.policy_yaml import load_policy
from worker.publish import KafkaPublisher
from worker.types import Message

README = REPOSITORY / "README.md"

_SECONDS = 300.0  # loading a model takes 6 s, on a busy machine many times that


@dataclass(frozen=True)
class Step:
    """A command, and lines that the chapter says it prints."""

    command: str
    printed: tuple[str, ...]


def chapter() -> str:
    found = re.search(r"<!-- editors -->\n(.*?)<!-- /editors -->", README.read_text(), re.S)
    assert found is not None, f"{README} has no chapter between the marks `editors`"
    return found[1]


def steps() -> Iterator[Step]:
    """In their order. A script is a step that shows nothing."""
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```$", chapter(), re.S | re.M):
        if language == "sh":
            yield Step(block, ())
            continue
        for step in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *printed = step.splitlines()
            yield Step(command, tuple(line for line in printed if line.strip()))


def is_script(step: Step) -> bool:
    return not step.command.startswith("imagewarden")


def gist(line: str) -> str:
    """What of a line is the same on every machine: its words, not numbers, styles and widths."""
    words = re.sub(r"\x1b\[[\d;]*m", "", line)
    return " ".join(re.sub(r"[-+]?\d[\d.,]*", "#", words).split())


def run(command: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, and what bash prints, which is on a terminal, and reports, which is not."""
    terminal, ours = pty.openpty()
    printed: list[bytes] = []

    def read() -> None:
        while True:
            try:
                printed.append(os.read(terminal, 65536))
            except OSError:  # the last process that had it open has ended
                return

    reading = threading.Thread(target=read)
    with subprocess.Popen(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=ours,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(ours)
        reading.start()
        try:
            _, reported = process.communicate(timeout=_SECONDS)
        finally:
            process.kill()
            process.wait()
            reading.join()
            os.close(terminal)
    seen = b"".join([*printed, reported]).decode(errors="replace")
    return process.returncode, seen.replace("\r\n", "\n")


@dataclass(frozen=True)
class Desk:
    """Where somebody works who writes policies: a folder, a service beside it that has judged what
    is in the album, and its settings."""

    folder: Path
    on: Stage
    environment: Mapping[str, str]

    def run(self, command: str) -> str:
        """What is seen of it; it must go well."""
        code, seen = run(command, self.folder, self.environment)
        differ = command.startswith("imagewarden policy diff")  # which exits as diff(1) does
        assert code == differ, f"$ {command}\n{seen}"
        return seen


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The files are what the scripts make with which the chapter begins."""
    folder: Path = tmp_path_factory.mktemp("editors")
    own = environment_of(folder)
    for script in takewhile(is_script, steps()):
        code, seen = run(script.command, folder, own)
        assert code == 0, seen
    replies = {
        f"/{path.parent.name}-{path.name}": Reply(path.read_bytes())
        for path in (folder / "album").glob("*/*.jpg")
    }
    with stage(replies, folder / "deployed.yaml", broker=KAFKA) as on:
        with worker_process(on):
            asyncio.run(judge(on))
        yield Desk(folder, on, {**own, **on.environment()})


async def judge(on: Stage) -> None:
    async with Exchange(on) as exchange:
        await verdicts_on(exchange, requests_of(on, on.images.replies))


def environment_of(folder: Path) -> dict[str, str]:
    """Of somebody for whom ``imagewarden`` and ``python`` are ours."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("imagewarden", " -m worker"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{arguments} "$@"\n')
        program.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if "IMAGEWARDEN" not in name},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TERM": "xterm",
        "COLUMNS": "160",
        "NO_COLOR": "1",
    }


@pytest.mark.timeout(600)
def test_every_command_of_the_chapter_works_and_prints_what_it_says(desk: Desk) -> None:
    for step in dropwhile(is_script, steps()):
        printed = desk.run(step.command)
        seen = {gist(line) for line in printed.splitlines()}
        missing = [line for line in step.printed if gist(line) not in seen]
        assert not missing, (
            f"$ {step.command}\n{printed}\nlacks what the chapter shows:\n" + "\n".join(missing)
        )


def test_the_chapter_goes_from_an_idea_to_a_shipped_category_in_ten_commands() -> None:
    commands = [step.command for step in steps() if not is_script(step)]
    assert [shlex.split(command)[1:3] for command in commands] == [
        ["policy", "schema"],
        ["policy", "check"],
        ["policy", "explain"],
        ["policy", "prompts"],
        ["policy", "calibrate"],
        ["policy", "promote"],
        ["policy", "test"],
        ["policy", "diff"],
        ["policy", "backtest"],
        ["redecide", "--policy"],
    ]


@pytest.mark.timeout(300)
def test_a_policy_is_calibrated_by_what_people_said_of_its_verdicts(desk: Desk) -> None:
    """They looked at all that went to review, and at one in two of what was allowed."""
    words = asyncio.run(spoken_of(desk))
    shutil.copy(desk.folder / "deployed.yaml", desk.folder / "by-feedback.yaml")
    printed = desk.run(
        "imagewarden policy calibrate by-feedback.yaml --from-feedback --since 1h "
        "--report by-feedback.html"
    )
    shown = sum(said["shows"] for said in words)
    assert gist(f"drink.coffee {shown} + {len(words) - shown}") in gist(printed)
    assert "drink.coffee" in (desk.folder / "by-feedback.html").read_text()
    [category] = load_policy(desk.folder / "by-feedback.yaml").categories
    assert category.calibration is not None
    evidence = (desk.folder / "by-feedback.yaml").read_text()
    assert f"positives: {shown}" in evidence
    assert f"negatives: {len(words) - shown}" in evidence


async def spoken_of(desk: Desk) -> list[dict[str, Any]]:
    verdicts = await all_verdicts(desk.on)
    allowed = [verdict.item_id for verdict in verdicts if verdict.decision == "allow"]
    reviewed = [verdict.item_id for verdict in verdicts if verdict.decision == "review"]
    words = [
        {
            "schema_version": 1,
            "item_id": item,
            "category": "drink.coffee",
            "shows": "coffee" in item,
            "sampled": 0.5 if item in allowed else 1.0,
        }
        for item in [*reviewed, *sorted(allowed)[::2]]
    ]
    publisher = KafkaPublisher(bootstrap=desk.on.broker, client_id="people")
    try:
        await publisher.start()
        for said in words:
            value = json.dumps(said).encode()
            await publisher.publish(Message(desk.on.topics.feedback_topic, None, value))
    finally:
        await publisher.close()
    return words
