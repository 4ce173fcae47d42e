"""``imagewarden policy test``: run the tests that policies carry."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.assembly import examiner_of, load_model
from worker.authoring.policy_tests import Outcome, run_tests
from worker.commands.render import COLOURS, Exit, Format, progress_bar
from worker.commands.scan import keep_nothing
from worker.errors import Misconfigured
from worker.judge import Judge
from worker.policy import Policy
from worker.policy_yaml import InvalidPolicy, load_policy
from worker.reload import PolicyStore
from worker.seams import Encoder
from worker.settings import Settings
from worker.yaml_values import Problem


async def test_policies(
    settings: Settings,
    files: Sequence[Path],
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Prints what came of each test."""
    policies = _loaded(files)
    tests = sum(len(policy.tests) for policy in policies)
    outcomes: list[tuple[Path, Outcome]] = []
    with progress_bar() as progress:
        loading = progress.add_task("loading the model", total=None)
        encoder = await asyncio.to_thread(load, settings)
        store = PolicyStore(files, encoder)
        await store.load_all()
        progress.remove_task(loading)
        task = progress.add_task("testing", total=tests)
        async with examiner_of(settings, encoder, keep_nothing, tiers=[]) as examiner:
            judge = Judge(
                examiner=examiner, policies=store, model=encoder.info, worker=settings.worker
            )
            for file, policy in zip(files, policies, strict=True):
                async for outcome in run_tests(policy, file.parent, judge):
                    outcomes.append((file, outcome))
                    progress.advance(task)
                    if format is Format.JSONL:
                        sys.stdout.write(_line(file, outcome) + "\n")
                        sys.stdout.flush()
    if format is Format.TABLE:
        # In a pipe there is no width to fit into
        Console(width=None if sys.stdout.isatty() else 160).print(_table(outcomes))
    failed = sum(not outcome.holds for _, outcome in outcomes)
    typer.echo(
        f"{failed} of {tests} tests failed" if failed else f"all {tests} tests hold", err=True
    )
    return Exit.NOT_ALL_ALLOWED if failed else Exit.ALL_ALLOWED


def _loaded(files: Sequence[Path]) -> list[Policy]:
    """Raises what is wrong with all of them, before a model is loaded."""
    policies: list[Policy] = []
    problems: list[Problem] = []
    for file in files:
        try:
            policy = load_policy(file, images=True)
        except InvalidPolicy as error:
            problems += error.problems
            continue
        policies.append(policy)
        if not policy.tests:
            raise Misconfigured(
                f"{file} has no `tests`; add some: tests: [{{image: photo.jpg, expect: allow}}]"
            )
    if problems:
        raise InvalidPolicy(problems)
    return policies


def _line(file: Path, outcome: Outcome) -> str:
    category, verdict = outcome.decided_by, outcome.verdict
    return json.dumps(
        {
            "policy": str(file),
            "image": outcome.test.image,
            "tenant": outcome.test.tenant,
            "expected": outcome.test.expect.value,
            "got": verdict.decision if verdict else None,
            "holds": outcome.holds,
            "category": category.id if category else None,
            "probability": category.probability if category else None,
            "list": verdict.listed.id if verdict and verdict.listed else None,
            "error": outcome.wrong,
        },
        ensure_ascii=False,
    )


def _table(outcomes: Sequence[tuple[Path, Outcome]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("policy", "image", "tenant"):
        table.add_column(column, overflow="fold")
    for column in ("expected", "got"):
        table.add_column(column, no_wrap=True)
    table.add_column("because of", overflow="fold")
    for file, outcome in outcomes:
        test, verdict = outcome.test, outcome.verdict
        got = verdict.decision if verdict else "none"
        table.add_row(
            Text("holds", "green") if outcome.holds else Text("FAILS", "bold red"),
            Text(str(file)),
            Text(test.image),
            Text(test.tenant or ""),
            Text(test.expect.value, COLOURS[test.expect.value]),
            Text(got, COLOURS.get(got, "bold red")),
            Text(_because(outcome)),
        )
    return table


def _because(outcome: Outcome) -> str:
    if outcome.wrong:
        return outcome.wrong
    if outcome.verdict and outcome.verdict.listed:
        return f"the list {outcome.verdict.listed.id}"
    if category := outcome.decided_by:
        threshold = 1.0 if category.threshold is None else category.threshold
        held = "under" if category.action == "allow" else f"{category.action} from"
        return f"{category.id} {category.probability:.2f}, {held} {threshold:g}"
    return ""
