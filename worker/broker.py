"""What every Kafka client of ours needs: opening it, reading its records."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import structlog
from kafka import KafkaConsumer, codec
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    KafkaConfigurationError,
    KafkaTimeoutError,
    RetriableError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.record.default_records import DefaultRecordBatchBuilder

from worker.errors import Misconfigured
from worker.types import Message, Record
from worker.unreadable import UNREADABLE_HEADER, ReadableRecords

log = structlog.get_logger(__name__)

Options = Mapping[str, Any]  #: more of kafka-python's settings, such as security_protocol, sasl_*
T = TypeVar("T")

_BOOTSTRAP_SECONDS = 3.0  # of one attempt; it cannot be interrupted, so it bounds how long we stop
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0

# With kafka-python's own 16 KiB a batch is full after six verdicts; with these, what is in flight
# of a partition shares one: more a second, and a quarter less of it on disk
_BATCH_BYTES = 256 * 1024
_HAS_CODEC = {
    "gzip": codec.has_gzip,
    "lz4": codec.has_lz4,
    "snappy": codec.has_snappy,
    "zstd": codec.has_zstd,
}


class Opened(NamedTuple):
    """A KafkaConsumer, KafkaProducer or KafkaAdminClient, and the network loop beneath it."""

    client: Any
    network: Any


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """kafka-python's own tries for ever, whatever the reason; this one remembers a reason."""

    failure: Exception | None = None

    def get_connection(self, *args: object, **options: object) -> Any:
        connection = super().get_connection(*args, **options)
        if not connection.init_future.is_done:
            connection.init_future.add_errback(self._remember)
        return connection

    async def _build_transport(self, *args: object, **options: object) -> Any:
        transport = await super()._build_transport(*args, **options)
        transport._sock = _LastWords(transport._sock)
        return transport

    def _remember(self, failure: Exception) -> None:
        # A refusal stands: a broker that hangs up on us repeatedly does not say why every time
        if self.failure is None or _refusal(self.failure) is None:
            self.failure = failure


class _LastWords:
    """A socket whose end is not told in one breath with what was said before it: kafka-python
    3.0.12 would throw that away, and it is where brokers say why they hang up on a login."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._spoke = False

    def recv(self, size: int) -> bytes:
        spoke, self._spoke = self._spoke, False
        data = self._socket.recv(size)
        if not data and spoke:
            raise BlockingIOError  # asked again, it is still at its end
        self._spoke = bool(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _refusal(failure: Exception) -> str | None:
    """A sentence for what trying again does not cure."""
    if isinstance(failure, SaslAuthenticationFailedError | UnsupportedSaslMechanismError):
        return (
            f"the brokers refuse our login ({failure}); check SASL_MECHANISM, SASL_USERNAME and "
            "SASL_PASSWORD of IMAGEWARDEN_KAFKA_SECURITY"
        )
    # kafka-python makes an error of its own of what ssl raised
    for cause in (failure.__context__, *failure.args):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"we refuse the brokers' certificate ({cause.verify_message}); check "
                "IMAGEWARDEN_KAFKA_SECURITY__CA_FILE, and that IMAGEWARDEN_KAFKA__BOOTSTRAP has "
                "the names in the certificate"
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(
            cause, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return (
                f"TLS with the brokers fails ({cause}); check that their listener is what "
                "IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL says, and whether they ask for a CERT_FILE"
            )
    return None


def servers(bootstrap: str | Sequence[str]) -> str:
    """``host:port``, several of them with commas between."""
    return bootstrap if isinstance(bootstrap, str) else ",".join(bootstrap)


def producer_settings(
    *,
    bootstrap: str | Sequence[str],
    client_id: str,
    max_message_bytes: int,
    compression: str,
    delivery_timeout_seconds: float,
) -> dict[str, Any]:
    """What every producer of ours has: messages are acknowledged by all in-sync replicas.

    Raises ``Misconfigured`` where the package that ``compression`` needs is missing.
    """
    if compression != "none" and not _HAS_CODEC[compression]():
        raise Misconfigured(
            f"messages cannot be compressed with {compression}, as its library is missing; "
            f"install it with pip install 'kafka-python[{compression}]', or set "
            "IMAGEWARDEN_KAFKA__COMPRESSION to gzip"
        )
    return {
        "bootstrap_servers": servers(bootstrap),
        "client_id": client_id,
        "acks": "all",
        "max_request_size": max_message_bytes,
        "batch_size": min(_BATCH_BYTES, max_message_bytes),
        "compression_type": None if compression == "none" else compression,
        "delivery_timeout_ms": int(delivery_timeout_seconds * 1000),
        # a quarter, so that a request which got lost is sent again before time is up
        "request_timeout_ms": min(30_000, int(delivery_timeout_seconds * 250)),
        "metrics_enabled": False,
    }


def open_client(kind: Callable[..., Any], **options: object) -> Opened:
    """Connect; blocks for ``_BOOTSTRAP_SECONDS`` at most.

    Raises ``KafkaTimeoutError`` when no broker answers, ``Misconfigured`` for bad options and
    where brokers and we refuse each other: for a password or a certificate, say.
    """
    networks: list[Any] = []
    connections: list[_Connections] = []

    def network(**settings: object) -> Any:
        net = NetworkSelector(**settings)
        connections.append(_Connections(net, **settings))
        networks.append(KafkaNetClient(net=net, manager=connections[0]))
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
        if isinstance(error, KafkaTimeoutError) and (failure := connections[0].failure):
            if why := _refusal(failure):
                raise Misconfigured(why) from failure
            raise KafkaTimeoutError(f"{error.args[0]}: {failure}") from failure
        raise
    # kafka-python 3.0.12 does not hand its own option of this name on: a misspelled topic would
    # come into being, with one partition, wherever brokers create topics by themselves.
    networks[0].cluster.config["allow_auto_create_topics"] = False
    if kind is KafkaConsumer:
        client._fetcher.PartitionRecords = ReadableRecords
    return Opened(client, networks[0])


async def until_reachable(attempt: Callable[[], Awaitable[T]], *, client: str, bootstrap: str) -> T:
    """What ``attempt`` gives once a broker answers it; cancel it to stop trying."""
    delays = retry_delays()
    while True:
        try:
            return await attempt()
        except RetriableError as error:
            seconds = next(delays)
            log.warning(
                "broker_unreachable",
                client=client,
                bootstrap=bootstrap,
                error=str(error),
                remedy="see that it is up, and that IMAGEWARDEN_KAFKA__BOOTSTRAP and "
                "IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL are right",
                retry_in_seconds=seconds,
            )
            await asyncio.sleep(seconds)


def retry_delays() -> Iterator[float]:
    """Seconds to wait after each attempt that failed, without end."""
    seconds = _FIRST_RETRY_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, _LAST_RETRY_SECONDS)


def record_of(read: ConsumerRecord) -> Record:
    """A header without a value, which the protocol allows, reads as an empty one, and a record of
    the oldest format, which has no timestamp, as one that was given none."""
    return Record(
        topic=read.topic,
        partition=read.partition,
        offset=read.offset,
        key=read.key,
        value=read.value,
        headers=tuple((name, value or b"") for name, value in read.headers),
        timestamp_ms=read.timestamp or 0,
        unreadable=next(
            (why.decode() for name, why in read.headers if name == UNREADABLE_HEADER), None
        ),
    )


def size_of(message: Message) -> int:
    """Bytes that it takes at most: in a batch of its own, uncompressed. The batch is what brokers
    hold against ``max.message.bytes``."""
    size = DefaultRecordBatchBuilder.estimate_size_in_bytes(
        message.key, message.value, message.headers
    )
    return int(size)
