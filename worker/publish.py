"""Publishes: verdicts, embeddings and dead letters; waits until the broker has them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

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
    servers,
    size_of,
    until_reachable,
)
from worker.handover import Handover
from worker.seams import TooLarge, Undelivered
from worker.types import Message

log = structlog.get_logger(__name__)


#: Of messages on their way, or handed over together the last time, from which on others wait. A
#: worker of 35 images a second has one or two, one of 300 about 12.
_COMPANY = 4

#: Of messages that wait; then they go with what this turn of the event loop still brings. More save
#: little more.
_ENOUGH = 16

#: What is handed over together is the producer's to send once it has all of it.
_GATHERING_MS = 1


class _Asked(NamedTuple):
    message: Message
    acknowledged: asyncio.Future[None]


class KafkaPublisher:
    """``seams.Publisher`` for messages that all in-sync replicas must have. Those of one key keep
    their order; a message whose acknowledgement got lost is published twice.

    ``linger_seconds`` is how long a message waits at most for others to share its request with,
    while there are others; ``compression`` gzip, lz4, snappy, zstd or none. ``max_message_bytes``
    should be what the topics take (``max.message.bytes``).

    Raises ``Misconfigured`` where the library that compresses is missing.
    """

    def __init__(
        self,
        *,
        bootstrap: str | Sequence[str],
        client_id: str,
        max_message_bytes: int = 1024 * 1024,
        linger_seconds: float = 0.02,
        compression: str = "gzip",
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
            "linger_ms": min(_GATHERING_MS, int(linger_seconds * 1000)),
            "max_block_ms": int(delivery_timeout_seconds * 1000),
            **(options or {}),
        }
        # send() blocks for as long as a topic's metadata is unknown; never the event loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-producer")
        self._producer: Any = None
        self._linger_seconds = linger_seconds
        self._unsent: list[_Asked] = []
        self._unacknowledged: set[asyncio.Future[None]] = set()
        self._handed_over_at = -math.inf  # loop time
        self._handed_over = 0  # messages, the last time

    async def start(self) -> None:
        """Connect, waiting for the broker as long as it takes.

        Raises ``Misconfigured`` when kafka-python refuses its settings.
        """
        self._handover = Handover(asyncio.get_running_loop())
        await until_reachable(
            lambda: self._call(self._open), client="producer", bootstrap=self._bootstrap
        )

    async def publish(self, message: Message) -> None:
        """See ``seams.Publisher``. Raises ``TooLarge`` or ``Undelivered``."""
        loop = asyncio.get_running_loop()
        asked = _Asked(message, loop.create_future())
        if not self._unsent:
            wait = self._linger_seconds if self._has_company() else 0.0
            self._due = loop.call_at(self._handed_over_at + wait, self._hand_over)
        self._unsent.append(asked)
        if len(self._unsent) == _ENOUGH:
            self._due.cancel()
            loop.call_soon(self._hand_over)
        try:
            await asked.acknowledged
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
        finally:
            self._unacknowledged.discard(asked.acknowledged)

    def fits(self, message: Message) -> bool:
        """See ``seams.Publisher``; by ``max_message_bytes``."""
        return size_of(message) <= self._max_message_bytes

    async def close(self) -> None:
        """Sends what is still waiting, within ``close_timeout_seconds``; then gives up: what is
        waiting is ``Undelivered``."""
        self._hand_over()
        await self._call(self._close)
        self._thread.shutdown()

    async def _call(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _has_company(self) -> bool:
        """Whether so much is published that what waits a little will not go alone."""
        return max(self._handed_over, len(self._unacknowledged)) >= _COMPANY

    def _hand_over(self) -> None:
        """All that waits at once: threads of Python wait for each other, so waking one for each
        message costs more than sending it."""
        unsent = [asked for asked in self._unsent if not asked.acknowledged.done()]
        self._unsent = []
        if not unsent:
            return
        self._handed_over_at = asyncio.get_running_loop().time()
        self._handed_over = len(unsent)
        self._unacknowledged.update(asked.acknowledged for asked in unsent)
        try:
            self._thread.submit(self._send, unsent)
        except RuntimeError as closed:  # whoever asked would wait for ever
            for _, acknowledged in unsent:
                if not acknowledged.done():
                    acknowledged.set_exception(closed)

    # ------------------------------------------------------------ on the producer's thread

    def _open(self) -> None:
        # kept here and not by the caller, who may have been cancelled by now, so that it is closed
        self._producer, _ = open_client(KafkaProducer, **self._settings)

    def _send(self, unsent: Sequence[_Asked]) -> None:
        for message, acknowledged in unsent:
            if acknowledged.done():  # cancelled meanwhile
                continue
            told = partial(self._handover.tell, acknowledged)
            try:
                sent = self._producer.send(
                    message.topic,
                    value=message.value,
                    key=message.key,
                    headers=list(message.headers),
                )
            except Exception as error:  # noqa: BLE001 - handed to who asked
                told(error)
            else:
                sent.add_callback(lambda _, told=told: told(None))
                sent.add_errback(told)

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
