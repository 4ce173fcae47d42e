"""Publishes: verdicts, embeddings and dead letters; waits until the broker has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from worker.broker import (
    Options,
    open_client,
    producer_settings,
    resolved,
    servers,
    size_of,
    until_reachable,
)
from worker.seams import TooLarge, Undelivered
from worker.types import Message

log = structlog.get_logger(__name__)


class KafkaPublisher:
    """``seams.Publisher`` for messages that all in-sync replicas must have. Those of one key keep
    their order; a message whose acknowledgement got lost is published twice.

    ``linger_seconds`` is how long a message waits for others to share its request with;
    ``compression`` one of kafka-python's codecs: gzip needs no library, takes JSON down to a
    quarter, and where checksums are computed in Python it even saves time. ``max_message_bytes``
    should be what the topics take (``max.message.bytes``).
    """

    def __init__(
        self,
        *,
        bootstrap: str | Sequence[str],
        client_id: str,
        max_message_bytes: int = 1024 * 1024,
        linger_seconds: float = 0.005,
        compression: str | None = "gzip",
        delivery_timeout_seconds: float = 120.0,
        close_timeout_seconds: float = 10.0,
        options: Options | None = None,
    ) -> None:
        self._bootstrap = servers(bootstrap)
        self._max_message_bytes = max_message_bytes
        self._delivery_timeout_seconds = delivery_timeout_seconds
        self._close_timeout_seconds = close_timeout_seconds
        self._settings: dict[str, Any] = {
            **producer_settings(
                bootstrap=bootstrap,
                client_id=client_id,
                max_message_bytes=max_message_bytes,
                compression=compression,
                delivery_timeout_seconds=delivery_timeout_seconds,
            ),
            # kafka-python's idempotent producer is finished for good once a broker refuses one
            # message for its size; what a lost acknowledgement repeats, consumers drop by id
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,  # keeps the order when one is repeated
            "linger_ms": int(linger_seconds * 1000),
            "max_block_ms": int(delivery_timeout_seconds * 1000),
            **(options or {}),
        }
        # send() blocks for as long as a topic's metadata is unknown; never the event loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-producer")
        self._producer: Any = None

    async def start(self) -> None:
        """Connect, waiting for the broker as long as it takes.

        Raises ``Misconfigured`` when kafka-python refuses its settings.
        """
        await until_reachable(
            lambda: self._call(self._open), client="producer", bootstrap=self._bootstrap
        )

    async def publish(self, message: Message) -> None:
        """See ``seams.Publisher``. Raises ``TooLarge`` or ``Undelivered``."""
        send = partial(
            self._producer.send,
            message.topic,
            value=message.value,
            key=message.key,
            headers=list(message.headers),
        )
        try:
            await resolved(await self._call(send))
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise TooLarge(
                f"a message of {len(message.value or b'')} bytes is too large for the topic "
                f"{message.topic}: {error}"
            ) from error
        except KafkaError as error:
            raise Undelivered(
                f"no acknowledgement for a message to the topic {message.topic} from "
                f"{self._bootstrap}, after trying for up to {self._delivery_timeout_seconds:.0f} s "
                f"({error!r}); check that the broker is up and the topic exists"
            ) from error

    def fits(self, message: Message) -> bool:
        """See ``seams.Publisher``; by ``max_message_bytes``."""
        return size_of(message) <= self._max_message_bytes

    async def close(self) -> None:
        """Sends what is still waiting, within ``close_timeout_seconds``; then gives up: what is
        waiting is ``Undelivered``."""
        await self._call(self._close)
        self._thread.shutdown()

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _open(self) -> None:
        # kept here and not by the caller, who may have been cancelled by now, so that it is closed
        self._producer, _ = open_client(KafkaProducer, **self._settings)

    def _close(self) -> None:
        if self._producer is None:
            return
        try:
            self._producer.close(timeout=self._close_timeout_seconds)
        except KafkaTimeoutError:  # raised before its close() came to stop the sender
            log.warning("unsent_messages_given_up", bootstrap=self._bootstrap)
            self._producer._sender.force_close()
            self._producer._sender.join()
            self._producer.close(timeout=0)
