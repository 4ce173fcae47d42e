"""Exactly once: messages, and the offsets they answer, in one transaction, all of it or nothing.

A producer whose transaction failed is thrown away, and a new one opened; the broker then aborts
what was open, and refuses what the old one may still send. It is the only way out, because
kafka-python 3.0.12 does not survive a transaction that failed: its ``abort_transaction`` leaves the
offsets that were refused to be committed with the next transaction, and after a message that the
broker refused, the sequence numbers are wrong, which ends with the producer fencing itself.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog
from kafka import KafkaProducer
from kafka.errors import (
    CommitFailedError,
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumberError,
    ProducerFencedError,
    UnknownProducerIdError,
)

from worker.broker import Options, open_client, producer_settings, servers, size_of, until_reachable
from worker.errors import Misconfigured
from worker.rebalance import kafka_offsets
from worker.seams import Aborted, Fenced, TooLarge, Undelivered
from worker.types import Message, OffsetAndMetadata, TopicPartition

log = structlog.get_logger(__name__)

T = TypeVar("T")

_WAIT_SECONDS = 0.2  # between looks at whether to give up; kafka-python would wait for ever

_FENCED = (ProducerFencedError, InvalidProducerEpochError)
#: The first comes of a rebalance; the others of brokers that lost or forgot what they knew of us.
_ABORTED = (
    CommitFailedError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
)


class KafkaTransactions:
    """``seams.Transactions``, one at a time. Those of one key keep their order.

    ``transactional_id`` is the same whenever this worker comes back, and no other's: opening it
    aborts what the last process left open. Where none comes back, the broker does so after
    ``transaction_timeout_seconds``; until then, readers of committed data wait. A transaction that
    takes longer looks as if another process had taken over.

    ``max_message_bytes`` should be what the topics take (``topic_limits``): a message that only
    the broker finds too large spoils its transaction, and is ``Undelivered`` every time.
    ``compression`` is as in ``KafkaPublisher``.
    """

    def __init__(
        self,
        *,
        bootstrap: str | Sequence[str],
        client_id: str,
        transactional_id: str,
        max_message_bytes: int = 1024 * 1024,
        compression: str = "gzip",
        transaction_timeout_seconds: float = 30.0,
        delivery_timeout_seconds: float = 120.0,
        options: Options | None = None,
    ) -> None:
        self._bootstrap = servers(bootstrap)
        self._transactional_id = transactional_id
        self._max_message_bytes = max_message_bytes
        self._delivery_timeout_seconds = delivery_timeout_seconds
        self._settings: dict[str, Any] = {
            **producer_settings(
                bootstrap=bootstrap,
                client_id=client_id,
                max_message_bytes=max_message_bytes,
                compression=compression,
                delivery_timeout_seconds=delivery_timeout_seconds,
            ),
            "transactional_id": transactional_id,
            "transaction_timeout_ms": int(transaction_timeout_seconds * 1000),
            # none: messages gather while the coordinator is told of the partitions they are for
            "linger_ms": 0,
            "max_block_ms": int(_WAIT_SECONDS * 1000),
            # a transaction that follows closely on another finds it ending, and is told to retry;
            # with the default, 100 ms, transactions take five times as long
            "retry_backoff_ms": 10,
            **(options or {}),
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-transactions")
        self._closing = threading.Event()
        self._producer: Any = None

    async def start(self) -> None:
        """Connect, and end what the last process with this transactional id left open; waits for
        the broker as long as it takes.

        Raises ``Misconfigured`` when kafka-python or the broker refuses its settings.
        """
        try:
            await until_reachable(
                lambda: self._call(self._open), client="transactions", bootstrap=self._bootstrap
            )
            await self._call(self._initialize)
        except KafkaError as error:
            raise Misconfigured(
                f"the broker refuses the transactional id {self._transactional_id} ({error!r}); "
                "check the transaction timeout, and what this client is allowed to do"
            ) from error

    def fits(self, message: Message) -> bool:
        """Whether ``commit`` takes it, as kafka-python counts, before compression."""
        return size_of(message) <= self._max_message_bytes

    async def commit(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: Any,
    ) -> None:
        """See ``seams.Transactions``. ``membership`` is kafka-python's ``ConsumerGroupMetadata``.

        Take ``membership`` first, and see that the partitions are still ours afterwards: the
        broker checks the generation of the group, and not who has which partition in it.

        Raises ``Aborted`` or ``Fenced``; ``TooLarge``, before anything is sent, for a message that
        does not fit; ``Undelivered`` when the broker has not answered within
        ``delivery_timeout_seconds``, and whether the transaction is committed is not known. After
        ``Fenced``, ``Undelivered`` or a cancellation, only ``close`` is left.
        """
        for message in messages:
            if not self.fits(message):
                raise TooLarge(
                    f"a message of {size_of(message)} bytes for the topic {message.topic}, "
                    f"and the limit is {self._max_message_bytes}"
                )
        if membership.generation_id < 0:  # which the broker would take from anybody
            raise Aborted(f"not a member of the group {membership.group_id} at this moment")
        try:
            await self._call(self._commit, messages, offsets, membership)
        except _FENCED as error:
            raise Fenced(
                f"another process has the transactional id {self._transactional_id}, or the "
                f"transaction took longer than its timeout ({error!r}); give each worker its own"
            ) from error
        except _ABORTED as error:
            await self._call(self._discard)
            await self.start()
            raise Aborted(repr(error)) from error
        except KafkaError as error:
            raise Undelivered(
                f"a transaction of {len(messages)} messages with {self._bootstrap} is in doubt "
                f"({error!r}); check that the brokers are up, and the topics' max.message.bytes"
            ) from error

    async def close(self) -> None:
        """Gives up at once what is not committed yet."""
        self._closing.set()
        await self._call(self._discard)
        self._thread.shutdown()

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # ------------------------------------------------------------ on the producer's thread

    def _open(self) -> None:
        # kept here and not by the caller, who may have been cancelled by now, so that it is closed
        self._producer, network = open_client(KafkaProducer, **self._settings)
        network.await_ready = partial(_await_ready, network.await_ready)

    def _initialize(self) -> None:
        self._patiently(self._producer.init_transactions, math.inf)

    def _commit(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: Any,
    ) -> None:
        give_up_at = time.monotonic() + self._delivery_timeout_seconds
        transaction = self._producer._transaction_manager
        try:
            self._producer.begin_transaction()
            sent = [self._patiently(partial(self._send, each), give_up_at) for each in messages]
            # for kafka-python commits without those that it gave up to deliver
            for message in sent:
                self._patiently(partial(message.get, _WAIT_SECONDS), give_up_at)
            read = kafka_offsets(offsets)
            self._ask(give_up_at, transaction.send_offsets_to_transaction, read, membership)
            self._ask(give_up_at, transaction.begin_commit)
        except KafkaError as error:
            if type(error) is KafkaError and transaction.last_error is not None:
                raise transaction.last_error from error  # of which this one is a consequence
            raise

    def _send(self, message: Message) -> Any:
        return self._producer.send(
            message.topic, value=message.value, key=message.key, headers=list(message.headers)
        )

    def _ask(self, give_up_at: float, request: Callable[..., Any], *args: Any) -> None:
        """What kafka-python's own methods do, but not for ever."""
        answer = request(*args)
        self._producer._sender.wakeup()

        def answered() -> None:
            if not answer.wait(timeout_ms=_WAIT_SECONDS * 1000):
                raise KafkaTimeoutError("the coordinator of the transaction or group is silent")

        self._patiently(answered, give_up_at)

    def _patiently(self, attempt: Callable[[], T], give_up_at: float) -> T:
        """What ``attempt``, which takes no longer than ``_WAIT_SECONDS``, gives in the end."""
        while True:
            try:
                return attempt()
            except KafkaTimeoutError:
                if self._closing.is_set() or time.monotonic() > give_up_at:
                    raise

    def _discard(self) -> None:
        if self._producer is None:
            return
        self._producer._sender.force_close()
        self._producer._sender.join()
        self._producer.close(timeout=0)


def _await_ready(await_ready: Callable[..., bool], *args: Any, **options: Any) -> bool:
    """Where kafka-python's raises, its sender drops the request that waits for that connection,
    and nobody ever hears of it; where it is false, the sender looks for the coordinator anew."""
    try:
        return await_ready(*args, **options)
    except KafkaConnectionError:
        return False
