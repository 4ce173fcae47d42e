from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SETUP = """
import logging, warnings
import structlog
from worker.logs import set_up_logs
set_up_logs({level!r}, {format!r})
log = structlog.get_logger("worker.test")

def fails():
    url = "http://host/?token=" + "hunter" + str(2)
    raise ValueError("broken")
"""


def logged(code: str, *, level: str = "info", format: str = "json") -> str:
    """What a process of its own writes to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP.format(level=level, format=format) + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_is_one_json_object() -> None:
    lines = objects(logged('log.info("two\\nlines", n=1, text="é")\nlog.warning("more")'))
    assert [line["event"] for line in lines] == ["two\nlines", "more"]
    assert (lines[0]["n"], lines[0]["text"]) == (1, "é")
    assert {"level", "logger", "timestamp"} <= lines[0].keys()


def test_lines_of_other_libraries_take_the_same_road() -> None:
    code = """
logging.getLogger("kafka.conn").warning("node %s is away", 3)
warnings.warn("careful")
"""
    library, warning = objects(logged(code))
    assert (library["event"], library["logger"]) == ("node 3 is away", "kafka.conn")
    assert "careful" in warning["event"]


def test_context_is_part_of_each_line() -> None:
    code = 'structlog.contextvars.bind_contextvars(request_id="r")\nlog.info("a")'
    assert objects(logged(code))[0]["request_id"] == "r"


def test_value_that_json_does_not_know_is_still_one_line() -> None:
    [line] = objects(logged('log.info("a", value={1, 2}, raw=b"\\xff")'))
    assert line["event"] == "a"


def test_level_is_that_of_our_own_lines_and_libraries_only_warn() -> None:
    code = """
log.debug("ours, in detail")
logging.getLogger("kafka").info("theirs")
logging.getLogger("kafka").error("theirs, broken")
"""
    assert [x["event"] for x in objects(logged(code))] == ["theirs, broken"]
    detailed = [x["event"] for x in objects(logged(code, level="debug"))]
    assert detailed == ["ours, in detail", "theirs, broken"]


FAILURES = {
    "ours": 'log.exception("failed")',
    "a library's": 'logging.getLogger("kafka").exception("failed")',
}


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("call", FAILURES.values(), ids=FAILURES.keys())
def test_traceback_shows_no_local_variables(call: str, format: str) -> None:
    text = logged(f"try:\n    fails()\nexcept ValueError:\n    {call}", format=format)
    assert "ValueError" in text
    assert "broken" in text
    assert "fails" in text
    assert "hunter2" not in text
    if format == "json":
        [line] = objects(text)
        assert line["event"] == "failed"


def test_terminal_gets_lines_for_people() -> None:
    text = logged('log.info("ready", group="g")', format="console")
    assert "ready" in text
    with pytest.raises(json.JSONDecodeError):
        objects(text)


def test_pipe_gets_json_unless_told_otherwise() -> None:
    assert objects(logged('log.info("ready")', format="auto"))[0]["event"] == "ready"
