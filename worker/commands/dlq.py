"""``imagewarden dlq``: list, show and replay dead letters."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.commands.render import Format
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher
from worker.schema import DEAD_LETTER_HEADER, DeadLetter
from worker.settings import Settings
from worker.topics import TopicReader
from worker.types import Message, Record

_SHOWN_BYTES = 4096


async def list_letters(settings: Settings, format: Format, reason: str | None) -> None:
    """Prints each dead letter's place, reason and origin, oldest first of each partition."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("letter", "when", "reason", "what is wrong", "came from", "bytes"):
        table.add_column(column, overflow="fold")
    async for record, letter in _letters(settings, reason):
        if format is Format.JSONL:
            typer.echo(json.dumps({"letter": _place(record), **letter.model_dump(mode="json")}))
            continue
        source = letter.source
        table.add_row(
            _place(record),
            f"{letter.produced_at:%Y-%m-%d %H:%M:%S}",
            letter.reason.value,
            Text(letter.detail),
            f"{source.topic} {source.partition}:{source.offset}",
            str(letter.value_bytes),
        )
    if format is Format.TABLE:
        if table.row_count:
            Console().print(table)
        else:
            typer.echo(f"no dead letters on {settings.kafka.dead_letters_topic}")


async def show_letter(settings: Settings, place: str) -> None:
    """Prints all of one dead letter. Raises ``Misconfigured`` where there is none."""
    [(record, letter)] = await _find(settings, [place])
    typer.echo(letter.model_dump_json(indent=2))
    typer.echo(f"key: {record.key!r}")
    for name, value in record.headers:
        if name != DEAD_LETTER_HEADER:
            typer.echo(f"header {name}: {value!r}")
    if not letter.value_included:
        typer.echo("value: larger than the topic takes; only its digest was kept")
        return
    value = record.value or b""
    typer.echo(f"value ({len(value)} bytes): {value[:_SHOWN_BYTES].decode(errors='replace')}")


async def replay_letters(settings: Settings, places: Sequence[str], reason: str | None) -> None:
    """Publishes the letters, or all of them, to the topic each came from, key and value as they
    came. Those whose value was not kept are told of and left."""
    found = (
        await _find(settings, places)
        if places
        else [found async for found in _letters(settings, reason)]
    )
    publisher = KafkaPublisher(
        bootstrap=settings.kafka.bootstrap,
        client_id=settings.worker,
        max_message_bytes=settings.kafka.message_max_bytes,
        compression=settings.kafka.compression,
        options=settings.kafka_security.options(),
    )
    replayed = 0
    try:
        await publisher.start()
        for record, letter in found:
            if not letter.value_included:
                typer.echo(f"{_place(record)}: left, as its value was not kept", err=True)
                continue
            headers = tuple(head for head in record.headers if head[0] != DEAD_LETTER_HEADER)
            await publisher.publish(Message(letter.source.topic, record.key, record.value, headers))
            replayed += 1
    finally:
        await publisher.close()
    typer.echo(f"replayed {replayed} of {len(found)}", err=True)


async def _letters(
    settings: Settings, reason: str | None = None
) -> AsyncIterator[tuple[Record, DeadLetter]]:
    reader = TopicReader(
        bootstrap=settings.kafka.bootstrap,
        topic=settings.kafka.dead_letters_topic,
        client_id=settings.worker,
        options=settings.kafka_security.options(),
    )
    async with reader:
        async for record in reader.read_all():
            header = dict(record.headers).get(DEAD_LETTER_HEADER)
            if header is None:
                typer.echo(f"{_place(record)}: no dead letter of ours; passed over", err=True)
                continue
            letter = DeadLetter.model_validate_json(header)
            if reason in (None, letter.reason.value):
                yield record, letter


async def _find(settings: Settings, places: Sequence[str]) -> list[tuple[Record, DeadLetter]]:
    wanted = set(places)
    found = {
        _place(record): (record, letter)
        async for record, letter in _letters(settings)
        if _place(record) in wanted
    }
    if missing := wanted - found.keys():
        raise Misconfigured(
            f"no dead letter {', '.join(sorted(missing))}; `imagewarden dlq list` shows them as "
            "PARTITION:OFFSET"
        )
    return [found[place] for place in places]


def _place(record: Record) -> str:
    return f"{record.partition}:{record.offset}"
