"""``imagewarden publish``: requests by hand, and their verdicts if asked to wait."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from uuid import uuid4

import typer

from worker.commands.render import (
    Exit,
    Format,
    exit_code,
    print_verdicts,
    progress_bar,
)
from worker.egress import public_url
from worker.errors import Malformed, Misconfigured
from worker.publish import KafkaPublisher
from worker.schema import Request, Verdict, parse_request
from worker.settings import Settings
from worker.topics import TopicReader
from worker.types import Message, Record


async def publish(
    settings: Settings,
    lines: Sequence[str],
    wait_seconds: float | None,
    tenant: str | None,
    format: Format,
) -> Exit:
    """Publishes a request for each line; with ``wait_seconds``, prints their verdicts."""
    given = list(_requests(settings, lines, tenant))
    requests = {request.request_id: request for request in given}  # repeats get one answer
    if not given:
        raise Misconfigured("there is nothing to publish; give URLs or JSON requests")
    if wait_seconds is None:
        await send(settings, given)
        typer.echo(f"published {len(given)} to {settings.kafka.requests_topic}", err=True)
        return Exit.ALL_ALLOWED
    verdicts: dict[str, Verdict] = {}
    reader = TopicReader(
        bootstrap=settings.kafka.bootstrap,
        topic=settings.kafka.verdicts_topic,
        client_id=settings.worker,
        options=settings.kafka_security.options(),
    )
    async with reader:
        answers = await reader.follow()  # from before the first request, so that none is missed
        await send(settings, given)
        with progress_bar() as progress:
            task = progress.add_task("waiting for verdicts", total=len(requests))
            try:
                async with asyncio.timeout(wait_seconds):
                    async for verdict in _verdicts_on(answers, requests):
                        verdicts[verdict.request_id] = verdict
                        progress.update(task, completed=len(verdicts))
                        if len(verdicts) == len(requests):
                            break
            except TimeoutError:
                pass
    print_verdicts(((_name(requests[id_]), verdict) for id_, verdict in verdicts.items()), format)
    if missing := len(requests) - len(verdicts):
        typer.echo(
            f"imagewarden: {missing} of {len(requests)} had no verdict within {wait_seconds:g} s; "
            "is a worker running? `imagewarden dlq list` shows what was refused",
            err=True,
        )
        return Exit.NOT_EXAMINED
    return exit_code(verdicts.values())


async def send(settings: Settings, requests: Iterable[Request]) -> None:
    """Publishes the requests; returns once all are acknowledged."""
    publisher = KafkaPublisher(
        bootstrap=settings.kafka.bootstrap,
        client_id=settings.worker,
        max_message_bytes=settings.kafka.message_max_bytes,
        compression=settings.kafka.compression,
        options=settings.kafka_security.options(),
    )
    try:
        await publisher.start()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                message = Message(
                    topic=settings.kafka.requests_topic,
                    key=request.item_id.encode(),
                    value=request.model_dump_json(exclude_defaults=True).encode(),
                )
                group.create_task(publisher.publish(message))
    finally:
        await publisher.close()


def _requests(settings: Settings, lines: Sequence[str], tenant: str | None) -> Iterator[Request]:
    for line in lines:
        if line == "-":
            yield from _requests(
                settings, [text for raw in sys.stdin if (text := raw.strip())], tenant
            )
        elif line.startswith("{"):
            try:
                yield parse_request(line.encode(), max_bytes=settings.kafka.request_max_bytes)
            except Malformed as malformed:
                raise Misconfigured(f"not a request: {malformed.detail}: {line[:80]}") from None
        elif "://" in line:
            yield Request(
                schema_version=1,
                request_id=str(uuid4()),
                item_id=public_url(line)[-256:],
                url=line,
                tenant=tenant,
            )
        else:
            raise Misconfigured(f"neither a URL nor a JSON request: {line[:80]}")


async def _verdicts_on(
    records: AsyncIterator[Record], requests: dict[str, Request]
) -> AsyncIterator[Verdict]:
    async for record in records:
        verdict = Verdict.model_validate_json(record.value or b"")
        if verdict.request_id in requests:
            yield verdict


def _name(request: Request) -> str:
    return public_url(request.url) if request.url else request.item_id
