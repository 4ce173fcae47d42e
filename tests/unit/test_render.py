"""Verdicts as people see them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich.console import Console

from worker.commands.render import Exit, exit_code, verdict_table
from worker.schema import BrakeRef, ListRef, ModelRef, PolicyRef, Verdict

DIGEST = "sha256:" + "0" * 64


def verdict(**said: Any) -> Verdict:
    fields = {
        "verdict_id": UUID(int=1),
        "request_id": "r",
        "item_id": "i",
        "tenant": None,
        "status": "ok",
        "decision": "block",
        "action": "block",
        "policy": PolicyRef(id="p", version=1, digest=DIGEST),
        "model": ModelRef(
            name="m", weights_digest=DIGEST, preprocess_digest=DIGEST, precision="fp32"
        ),
        "timings_ms": {"total": 3.0},
        "metadata": {},
        "worker": "w",
        "produced_at": datetime.now(UTC),
    }
    return Verdict(**{**fields, **said})


def row(shown: Verdict) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(verdict_table([("a.jpg", shown)]))
    [line] = [line for line in captured.get().splitlines() if "a.jpg" in line]
    return line


def test_listed_image_names_its_list_and_how_near_it_is() -> None:
    line = row(verdict(listed=ListRef(id="[known]", action="block", distance=7)))
    assert "block" in line
    assert "list [known]" in line
    assert "7 of 256 bits" in line


def test_braked_verdict_says_so() -> None:
    brake = BrakeRef(share=0.5, requests=300, scope="fleet")
    assert "review (braked)" in row(verdict(decision="review", action="review", brake=brake))
    unexamined = verdict(decision="undetermined", action="review", brake=brake)
    assert "undetermined → review (braked)" in row(unexamined)


def test_exit_code_is_that_of_what_the_list_says() -> None:
    assert exit_code([verdict(listed=ListRef(id="l", action="block", distance=0))]) == (
        Exit.NOT_ALL_ALLOWED
    )
