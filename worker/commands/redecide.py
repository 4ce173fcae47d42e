"""``imagewarden redecide``: new verdicts on what was decided before, where a policy decides
otherwise.

Nothing is kept between runs: what a run has published lies on the topic, where the next run finds
it. The verdicts' topic is read again before every step, so that a request that a worker judged
meanwhile is left to that verdict. Between this and the acknowledgement, a second at most, a worker
may still be faster. Then both verdicts supersede the first one or stand beside it, the later of
the two counts, and the command says how often it came to that.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import typer
from pydantic import ValidationError
from rich.progress import Progress

from worker.assembly import load_model
from worker.commands.past import (
    comparable,
    compiled,
    of_policy,
    past_of_topics,
    reader_of,
    window_of,
)
from worker.commands.render import Exit, Format, progress_bar
from worker.past.embedding_store import EmbeddingStore
from worker.past.redecide import Plan, plan_redecisions
from worker.past.verdict_table import Said
from worker.policy_yaml import load_policy
from worker.publish import KafkaPublisher
from worker.schema import Verdict
from worker.seams import Encoder, TooLarge, Undelivered
from worker.settings import Settings
from worker.topics import TopicReader
from worker.types import Message

_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RedecideOptions:
    """What the command's options say; ``rate`` is verdicts a second."""

    policy: Path
    since: str
    until: str | None = None
    of: str | None = None
    dry_run: bool = False
    everything: bool = False
    rate: float = 500.0


async def redecide(
    settings: Settings,
    options: RedecideOptions,
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Prints what changes and publishes it, unless it is a dry run."""
    policy = load_policy(options.policy)
    window = window_of(options.since, options.until)
    topic = settings.kafka.verdicts_topic
    with EmbeddingStore() as store:
        async with reader_of(settings, topic) as reader:
            past = await past_of_topics(settings, reader, store, window, metadata=True)
            past = comparable(of_policy(past, options.of or policy.id), [policy])
            with progress_bar() as bar:
                bar.add_task("loading the model", total=None)
                encoder = await asyncio.to_thread(load, settings)
            [scored] = compiled(encoder, [policy])
            plan = plan_redecisions(past, scored, encoder.info, everything=options.everything)
            _tell(plan, format)
            if options.dry_run:
                typer.echo("dry run: nothing was published", err=True)
            elif len(plan.rows):
                await _publish(settings, plan, reader, options.rate)
    return Exit.ALL_ALLOWED


# ---------------------------------------------------------------- what is told


def _tell(plan: Plan, format: Format) -> None:
    if format is Format.JSONL:
        _print_lines(plan)
    counts = Counter(plan.actions)
    typer.echo(
        f"{len(plan.rows):,} verdicts to supersede; {plan.unchanged:,} stay as they are, "
        f"{plan.done:,} are by this policy already",
        err=True,
    )
    for (before, after), number in counts.most_common():
        typer.echo(f"{before} → {after}: {number:,}", err=True)
    for why, number in plan.left_out.items():
        typer.echo(f"left: {number:,} {why}", err=True)
    for sentence in plan.past.tally.sentences():
        typer.echo(sentence, err=True)


def _print_lines(plan: Plan) -> None:
    names = ("request_id", "item_id", "tenant", "verdict_id")
    said = plan.past.verdicts.select(names).take(plan.rows).to_pylist()
    for row, (before, after) in zip(said, plan.actions, strict=True):
        supersedes = row.pop("verdict_id")
        line = {**row, "before": before, "after": after, "supersedes": supersedes}
        sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------- publishing


@dataclass(slots=True)
class _Tail:
    """What comes onto the verdicts' topic after it was read: ``overtaken`` are the requests that
    were judged anew, and not by us."""

    reader: TopicReader
    in_force: Mapping[str, str]  #: verdict ids by request id
    ours: set[str] = field(default_factory=set)  #: ids of the verdicts that were sent
    overtaken: set[str] = field(default_factory=set)

    async def read(self) -> None:
        async for record in self.reader.read_news():
            try:
                said = Said.model_validate_json(record.value or b"")
            except ValidationError:
                continue
            before, now = self.in_force.get(said.request_id), str(said.verdict_id)
            if before is not None and said.error is None and now != before and now not in self.ours:
                self.overtaken.add(said.request_id)


async def _publish(settings: Settings, plan: Plan, reader: TopicReader, rate: float) -> None:
    tail = _Tail(reader, plan.superseded())
    publisher = KafkaPublisher(
        bootstrap=settings.kafka.bootstrap,
        client_id=settings.worker,
        max_message_bytes=settings.kafka.message_max_bytes,
        compression=settings.kafka.compression,
        options=settings.kafka_security.options(),
    )
    try:
        await publisher.start()
        with progress_bar() as bar:
            await _steps(settings, plan, publisher, tail, rate, bar)
    except BaseException as error:
        typer.echo(
            f"stopped: {len(tail.ours):,} of {len(plan.rows):,} were sent; run it again for the "
            "rest",
            err=True,
        )
        if isinstance(error, Undelivered):
            raise ConnectionError(str(error)) from error
        raise
    finally:
        await publisher.close()


async def _steps(
    settings: Settings,
    plan: Plan,
    publisher: KafkaPublisher,
    tail: _Tail,
    rate: float,
    bar: Progress,
) -> None:
    """Each is acknowledged before the next begins."""
    task = bar.add_task("publishing", total=len(plan.rows))
    size = max(1, round(rate * _STEP_SECONDS))
    clock = asyncio.get_running_loop().time
    started, too_large, left, late = clock(), 0, 0, set[str]()
    for start in range(0, len(plan.rows), size):
        step = slice(start, start + size)
        verdicts = await asyncio.to_thread(list, plan.verdicts(step, f"redecide {settings.worker}"))
        await tail.read()
        timely = [verdict for verdict in verdicts if verdict.request_id not in tail.overtaken]
        left += len(verdicts) - len(timely)
        tail.ours |= {str(verdict.verdict_id) for verdict in timely}
        sent = (_sent(publisher, settings.kafka.verdicts_topic, verdict) for verdict in timely)
        too_large += (await asyncio.gather(*sent)).count(False)
        late |= {verdict.request_id for verdict in timely}
        bar.update(task, completed=start + len(verdicts))
        if start + size < len(plan.rows):
            await asyncio.sleep(max(0.0, started + (start + size) / rate - clock()))
    await tail.read()
    typer.echo(f"published {len(tail.ours) - too_large:,} verdicts", err=True)
    for number, what in (
        (left, "were judged by a worker meanwhile: left to that verdict"),
        (len(late & tail.overtaken), "were judged by a worker at the same time: the later counts"),
        (too_large, "are too large for the topic, and were not published"),
    ):
        if number:
            typer.echo(f"{number:,} {what}", err=True)


async def _sent(publisher: KafkaPublisher, topic: str, verdict: Verdict) -> bool:
    """False for what is too large for the topic."""
    key, value = verdict.item_id.encode(), verdict.model_dump_json().encode()
    try:
        await publisher.publish(Message(topic, key=key, value=value))
    except TooLarge:
        return False
    return True
