"""What every Kafka client of ours needs: opening it, awaiting its futures, reading its records."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import structlog
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaConfigurationError, KafkaTimeoutError
from kafka.future import Future
from kafka.net.compat import KafkaNetClient

from worker.errors import Misconfigured
from worker.types import Record

log = structlog.get_logger(__name__)

Options = Mapping[str, Any]  #: more of kafka-python's settings, such as security_protocol, sasl_*
T = TypeVar("T")

_BOOTSTRAP_SECONDS = 3.0  # of one attempt; it cannot be interrupted, so it bounds how long we stop
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0


class Opened(NamedTuple):
    """A KafkaConsumer, KafkaProducer or KafkaAdminClient, and the network loop beneath it."""

    client: Any
    network: Any


def servers(bootstrap: str | Sequence[str]) -> str:
    """``host:port``, several of them with commas between."""
    return bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap)


def open_client(kind: Callable[..., Any], **options: object) -> Opened:
    """Connect; blocks for ``_BOOTSTRAP_SECONDS`` at most.

    Raises ``KafkaTimeoutError`` when no broker answers, ``Misconfigured`` for bad options.
    """
    networks: list[Any] = []

    def network(**settings: object) -> Any:
        networks.append(KafkaNetClient(**settings))
        return networks[0]

    try:
        client = kind(
            kafka_client=network, bootstrap_timeout_ms=int(_BOOTSTRAP_SECONDS * 1000), **options
        )
    except BaseException as error:
        for left_behind in networks:  # with its thread, by a constructor that failed
            left_behind.close()
        if isinstance(error, ValueError | KafkaConfigurationError):
            raise Misconfigured(f"the Kafka client refuses its settings: {error}") from error
        raise
    # kafka-python 3.0.12 does not hand its own option of this name on: a misspelled topic would
    # come into being, with one partition, wherever brokers create topics by themselves.
    networks[0].cluster.config["allow_auto_create_topics"] = False
    return Opened(client, networks[0])


async def until_reachable(attempt: Callable[[], Awaitable[T]], *, client: str, bootstrap: str) -> T:
    """What ``attempt`` gives once a broker answers; cancel it to stop trying."""
    delays = retry_delays()
    while True:
        try:
            return await attempt()
        except KafkaTimeoutError as error:
            seconds = next(delays)
            log.warning(
                "broker_unreachable",
                client=client,
                bootstrap=bootstrap,
                error=str(error),
                retry_in_seconds=seconds,
            )
            await asyncio.sleep(seconds)


def retry_delays() -> Iterator[float]:
    """Seconds to wait after each attempt that failed, without end."""
    seconds = _FIRST_RETRY_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, _LAST_RETRY_SECONDS)


async def resolved(future: Future) -> Any:
    """The value of kafka-python's ``future``, awaited on our own loop."""
    loop = asyncio.get_running_loop()
    ours: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if ours.done():  # cancelled meanwhile
            return
        if error is None:
            ours.set_result(value)
        else:
            ours.set_exception(error)

    future.add_callback(lambda value: loop.call_soon_threadsafe(settle, value, None))
    future.add_errback(lambda error: loop.call_soon_threadsafe(settle, None, error))
    return await ours


def record_of(read: ConsumerRecord) -> Record:
    """A header without a value, which the protocol allows, reads as an empty one."""
    return Record(
        topic=read.topic,
        partition=read.partition,
        offset=read.offset,
        key=read.key,
        value=read.value,
        headers=tuple((name, value or b"") for name, value in read.headers),
        timestamp_ms=read.timestamp,
    )
