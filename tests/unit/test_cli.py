"""The command line itself; what its commands do is tested end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner

from worker import __version__
from worker.cli import cli
from worker.commands.render import Exit, exit_code
from worker.schema import ModelRef, PolicyRef, Verdict

DIGEST = "sha256:" + "0" * 64
REPOSITORY = Path(__file__).parents[2]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(cli)))


def verdict(decision: Literal["allow", "review", "block", "undetermined"]) -> Verdict:
    return Verdict(
        verdict_id=UUID(int=1),
        request_id="1",
        item_id="1",
        tenant=None,
        status="error" if decision == "undetermined" else "ok",
        decision=decision,
        action="allow" if decision == "undetermined" else decision,
        policy=PolicyRef(id="p", version=1, digest=DIGEST),
        model=ModelRef(
            name="fake", weights_digest=DIGEST, preprocess_digest=DIGEST, precision="float32"
        ),
        timings_ms={},
        metadata={},
        worker="w",
        produced_at=datetime.now(UTC),
    )


def test_the_documented_commands_are_all_there() -> None:
    wanted = {
        ("run",),
        ("scan",),
        ("publish",),
        ("dlq", "list"),
        ("dlq", "show"),
        ("dlq", "replay"),
        ("feedback",),
    }
    assert wanted <= COMMANDS.keys()


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], option: str) -> None:
    done = CliRunner().invoke(cli, [*path, option], prog_name="imagewarden")
    assert done.exit_code == 0
    assert " ".join(["Usage: imagewarden", *path]) in done.stdout
    assert COMMANDS[path].help


def test_help_needs_neither_the_model_nor_the_broker_s_client() -> None:
    program = (
        "import sys\n"
        "from worker.cli import cli\n"
        "try: cli(['scan', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'kafka', 'redis'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "set()\n"


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(cli, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"imagewarden {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["scan"],
        ["scan", "--no-such-option", "image.jpg"],
        ["scan", "--format", "xml", "image.jpg"],
        ["publish", "--wait", "soon"],
        ["dlq", "show"],
        ["dlq", "replay"],
        ["dlq", "replay", "--all", "0:1"],
        ["feedback", "--items", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_says_so_on_standard_error(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert "Error" in done.stderr


@pytest.mark.parametrize("command", [["run"], ["scan", "x"], ["publish", "x"], ["dlq", "list"]])
def test_a_wrong_setting_is_a_sentence_whatever_the_command(command: list[str]) -> None:
    done = CliRunner().invoke(cli, command, env={"IMAGEWARDEN_WORK__IMAGES": "0"})
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert done.stderr.startswith("imagewarden: IMAGEWARDEN_WORK__IMAGES is wrong: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "worker", "policy", "check", "policies/demo.yaml"],
        cwd=REPOSITORY,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_output_that_cannot_be_written_is_a_failure_in_the_log() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "worker", "policy", "check", "policies/demo.yaml"],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == Exit.FAILED
    assert json.loads(done.stderr)["event"] == "failed"


def test_the_exit_code_tells_the_worst_of_all_verdicts() -> None:
    allow, review, block = verdict("allow"), verdict("review"), verdict("block")
    assert exit_code([]) == exit_code([allow, allow]) == Exit.ALL_ALLOWED
    assert exit_code([allow, review]) == exit_code([block, allow]) == Exit.NOT_ALL_ALLOWED


def test_what_was_not_examined_is_not_allowed_even_where_the_policy_lets_it_pass() -> None:
    unexamined = verdict("undetermined")
    assert unexamined.action == "allow"
    assert exit_code([verdict("block"), unexamined, verdict("allow")]) == Exit.NOT_EXAMINED
