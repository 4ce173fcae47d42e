"""``imagewarden topics create``: those that are missing; what is wrong with those that exist."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.commands.render import Exit, Format
from worker.settings import Settings
from worker.topic_admin import TopicAdmin, topic_admin
from worker.topic_plan import DAY_SECONDS, Existing, Names, Needs, Topic, differences, plan_topics

_MOST_REPLICAS = 3


class State(StrEnum):
    CREATED = "created"
    MISSING = "missing"
    RIGHT = "as it should be"
    UNTOLD = "exists"  # and the brokers do not tell its settings
    DIFFERS = "differs"
    REFUSED = "refused"


_STYLES = {
    State.CREATED: "green",
    State.DIFFERS: "red",
    State.REFUSED: "red",
    State.MISSING: "cyan",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one, and a sentence for each thing that is wrong."""

    topic: Topic
    state: State
    wrong: tuple[str, ...] = ()
    found: Existing | None = None


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """``replicas`` None: as many as there are brokers, up to three."""

    partitions: int
    replicas: int | None
    look_back_days: float
    wait_days: float
    dry_run: bool


def create_topics(settings: Settings, options: CreateOptions, format: Format) -> Exit:
    """Creates what is missing, changes nothing that is there, and prints both.

    Raises ``ConnectionError`` when no broker answers, ``Misconfigured``.
    """
    with topic_admin(
        settings.kafka.bootstrap,
        client_id=settings.worker,
        options=settings.kafka_security.options(),
    ) as admin:
        replicas = options.replicas or min(_MOST_REPLICAS, admin.brokers())
        topics = plan_topics(
            names_of(settings),
            Needs(
                partitions=options.partitions,
                replicas=replicas,
                look_back_days=options.look_back_days,
                wait_days=options.wait_days,
                cached_days=settings.cache.embedding_ttl_seconds / DAY_SECONDS,
                request_max_bytes=settings.kafka.request_max_bytes,
                message_max_bytes=settings.kafka.message_max_bytes,
            ),
        )
        outcomes = list(_outcomes(admin, topics, dry_run=options.dry_run))
    _print(outcomes, format)
    return Exit.NOT_ALL_ALLOWED if any(each.wrong for each in outcomes) else Exit.ALL_ALLOWED


def names_of(settings: Settings) -> Names:
    kafka = settings.kafka
    return Names(
        requests=kafka.requests_topic,
        verdicts=kafka.verdicts_topic,
        dead_letters=kafka.dead_letters_topic,
        embeddings=kafka.embeddings_topic,
        feedback=kafka.feedback_topic,
        retries=kafka.retries_topic if settings.retry.attempts else None,
        backfill=kafka.backfill_topic,
    )


def _outcomes(admin: TopicAdmin, topics: Sequence[Topic], *, dry_run: bool) -> Iterator[Outcome]:
    found, hidden = admin.describe([topic.name for topic in topics])
    missing = [topic for topic in topics if topic.name not in found.keys() | hidden.keys()]
    # Never by asking brokers to validate only: the embedded one then creates them
    created = {} if dry_run else admin.create(missing)
    if others := [] if dry_run else [each.name for each in missing if each.name not in created]:
        more_found, more_hidden = admin.describe(others)
        found, hidden = found | more_found, hidden | more_hidden
    for topic in topics:
        if (existing := found.get(topic.name)) is not None:
            wrong = tuple(differences(topic, existing))
            untold = State.UNTOLD if existing.configs is None else State.RIGHT
            yield Outcome(topic, State.DIFFERS if wrong else untold, wrong, existing)
        elif why := hidden.get(topic.name) or created.get(topic.name):
            yield Outcome(topic, State.REFUSED, (why,))
        else:
            yield Outcome(topic, State.MISSING if dry_run else State.CREATED)


def _print(outcomes: Sequence[Outcome], format: Format) -> None:
    if format is Format.JSONL:
        for outcome in outcomes:
            topic = outcome.topic
            line = {
                "topic": topic.name,
                "state": outcome.state.value,
                "partitions": topic.partitions,
                "replicas": topic.replicas,
                "configs": dict(topic.configs),
                "wrong": outcome.wrong,
            }
            typer.echo(json.dumps(line))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("topic", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("kept", min_width=8)
    for column in ("partitions\n× replicas", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in outcomes:
        topic, found = outcome.topic, outcome.found
        configs = topic.configs if found is None else found.configs or {}
        table.add_row(
            Text(topic.name),
            Text(outcome.state, style=_STYLES.get(outcome.state, "")),
            _kept(configs),
            f"{(found or topic).partitions} × {(found or topic).replicas}",
            configs.get("max.message.bytes", ""),
        )
    # In a pipe there is no width to fit into
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for sentence in (sentence for outcome in outcomes for sentence in outcome.wrong):
        console.print(Text(sentence), soft_wrap=True)


def _kept(configs: Mapping[str, str]) -> str:
    """How long, and whether only the newest record of each key is."""
    parts = []
    if milliseconds := configs.get("retention.ms"):
        days = f"{int(milliseconds) / 86_400_000:.3g} days"
        parts.append("for ever" if milliseconds == "-1" else days)
    if "compact" in configs.get("cleanup.policy", ""):
        parts.append("compact")
    return ", ".join(parts)
