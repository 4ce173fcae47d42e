"""The demonstration: every kind of image through a real worker, the cache, and an edited policy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from ruamel.yaml import YAML

from worker.commands.render import Exit, verdict_table
from worker.demo.photos import Exhibit, exhibits
from worker.demo.stage import Exchange, Stage, Worker, stage, worker_process
from worker.schema import DeadLetter, Verdict

POLICY = Path(__file__).resolve().parents[2] / "policies" / "demo.yaml"

_FETCH_SECONDS = 3.0  # what the worker grants a download, so that the slow one does not slow us
_ANSWER_SECONDS = 60.0
_RELOAD_SECONDS = 10.0
_NOT_A_REQUEST = "not-a-request"

Answers = Mapping[str, Verdict | DeadLetter]


def show(*, keep: bool) -> Exit:
    """Runs it and prints what came of it. ``NOT_EXAMINED`` if any request was never answered.

    Raises ``Misconfigured`` where a wheel is missing.
    """
    console = Console(width=None if os.isatty(1) else 140)
    with ExitStack() as parts:
        with console.status("starting broker, cache, image server and worker …"):
            began = time.monotonic()
            shown = exhibits(slow_seconds=_FETCH_SECONDS + 2)
            on = parts.enter_context(stage({e.path: e.reply for e in shown}, POLICY))
            worker = parts.enter_context(
                worker_process(
                    on, settings={"IMAGEWARDEN_FETCH__TOTAL_TIMEOUT_SECONDS": f"{_FETCH_SECONDS}"}
                )
            )
        console.print(
            f"A Kafka broker at {on.broker}, Redis at {on.redis}, {len(shown)} images at "
            f"http://127.0.0.1:{on.images.port} and a worker with the [bold]pocket[/] model, "
            f"ready after {time.monotonic() - began:.1f} s.\n"
        )
        answered = asyncio.run(_acts(console, on, worker, shown))
        if keep:
            _keep(console, on, worker)
        code = worker.stop()
        console.print(
            f"\nSIGTERM: the worker drained, committed, left the group, exit code {code}."
        )
    if not answered or code != 0:
        console.print("[bold red]Not every request was answered, or the worker failed.[/]")
        return Exit.NOT_EXAMINED
    return Exit.ALL_ALLOWED


async def _acts(console: Console, on: Stage, worker: Worker, shown: list[Exhibit]) -> bool:
    async with Exchange(on) as exchange:
        first = await _ask(console, exchange, on, "first", shown, also=_NOT_A_REQUEST)
        console.print(_table("1. Every request and what came of it", shown, first, "first"))

        second = await _ask(console, exchange, on, "second", shown)
        console.print(
            _table("2. The same requests again: the cache answers", shown, second, "second")
        )

        examined = [e for e in shown if _status(second.get(f"second/{e.name}")) == "ok"]
        hits = Counter(on.images.hits)
        edit, seconds = await _edit(on, worker)
        third = await _ask(console, exchange, on, "third", examined)
        fetched = sum((on.images.hits - hits).values())
        console.print(f"3. The policy edited on disk: {edit}. In force after {seconds:.1f} s.")
        console.print(_changes(examined, second, third))
        console.print(f"Images fetched again for that: [bold]{fetched}[/] of {len(examined)}.")
    asked = 2 * len(shown) + 1 + len(examined)
    answers = len(first) + len(second) + len(third)
    console.print(f"{asked} requests, {answers} answered: {_summary(first, second, third)}.")
    return answers == asked and fetched == 0


async def _ask(
    console: Console,
    exchange: Exchange,
    on: Stage,
    act: str,
    shown: Iterable[Exhibit],
    also: str | None = None,
) -> Answers:
    records = {f"{act}/{e.name}": _request(on, act, e) for e in shown}
    if also:
        records[f"{act}/{also}"] = b"this is not a request"
    answers: dict[str, Verdict | DeadLetter] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("verdicts", total=len(records))
        await exchange.publish(records)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while len(answers) < len(records):
                    name, answer = await exchange.answer()
                    if name in records:
                        answers[name] = answer
                        progress.update(task, completed=len(answers))
        except TimeoutError:
            pass  # who is missing shows in the table
    return answers


def _request(on: Stage, act: str, exhibit: Exhibit) -> bytes:
    request = {
        "schema_version": 1,
        "request_id": f"{act}/{exhibit.name}",
        "item_id": exhibit.name,
        "url": on.images.url(exhibit.path),
    }
    return json.dumps(request).encode()


def _table(title: str, shown: Iterable[Exhibit], answers: Answers, act: str) -> Table:
    names = {f"{act}/{e.name}": f"{e.name} ({e.shows})" if e.shows else e.name for e in shown}
    names |= {name: name.removeprefix(f"{act}/") for name in answers if name not in names}
    return verdict_table(
        ((label, _row(answers.get(name))) for name, label in names.items()), title=title
    )


def _row(answer: Verdict | DeadLetter | None) -> Verdict | str:
    match answer:
        case Verdict():
            return answer
        case DeadLetter():
            return f"dead letter: {answer.reason.value}, {answer.detail}"
        case None:
            return "no answer"


def _status(answer: Verdict | DeadLetter | None) -> str | None:
    return answer.status if isinstance(answer, Verdict) else None


async def _edit(on: Stage, worker: Worker) -> tuple[str, float]:
    """What was edited, and the seconds until it was in force."""
    edit, version = _rewrite(on.policy)
    began = time.monotonic()
    while f'version="{version}"' not in worker.metrics():
        if time.monotonic() - began > _RELOAD_SECONDS:
            raise worker.failed("the edited policy was not applied")
        await asyncio.sleep(0.02)
    return edit, time.monotonic() - began


def _rewrite(path: Path) -> tuple[str, int]:
    """Lets a category that asks for review block from the same probability on, as an editor would;
    what was done, and the policy's new version."""
    yaml = YAML()
    policy = yaml.load(path.read_text())
    category = next(c for c in policy["categories"] if "review" in c and "block" not in c)
    category["block"] = category["review"]
    policy["version"] += 1
    edited = path.with_suffix(".edited")
    with edited.open("w") as file:
        yaml.dump(policy, file)
    edited.replace(path)
    return f"{category['id']} now blocks from {category['block']} on", policy["version"]


def _changes(examined: Iterable[Exhibit], before: Answers, after: Answers) -> Table:
    return verdict_table(
        (e.name, now)
        for e in examined
        if isinstance(then := before[f"second/{e.name}"], Verdict)
        and isinstance(now := after.get(f"third/{e.name}"), Verdict)
        and now.decision != then.decision
    )


def _summary(*acts: Answers) -> str:
    said = Counter(
        answer.decision if isinstance(answer, Verdict) else "dead letter"
        for act in acts
        for answer in act.values()
    )
    return ", ".join(f"{count} {what}" for what, count in said.most_common())


def _keep(console: Console, on: Stage, worker: Worker) -> None:
    variables = " ".join(f"{name}='{value}'" for name, value in on.environment().items())
    console.print(
        f"\nLeft running. Metrics: http://{worker.address()}/metrics. Policy: {on.policy}. "
        f"Worker's log: {worker.log}. To publish an image and see its verdict:\n"
    )
    console.print(
        f"  {variables} imagewarden publish --wait 10 {on.images.url('/chelsea.jpg')}",
        soft_wrap=True,
        highlight=False,
    )
    console.print("\nCtrl-C ends it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
