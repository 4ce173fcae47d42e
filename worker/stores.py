"""Where cached bytes live: in this process (``MemoryStore``) and in Redis (``RedisStore``).

Every value has a time to live, and no store raises for a failure of its own: what it cannot answer
is a miss, and what it cannot keep is not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import structlog
from cachetools import TLRUCache
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, RedisError

from worker import telemetry
from worker.batching import Batcher
from worker.types import CacheTier

T = TypeVar("T")
R = TypeVar("R")
Write = tuple[str, bytes, float]  # name, value, seconds to live

_log = structlog.get_logger(__name__)

#: What an entry takes besides its key and its value, in bytes: objects, and places in the
#: cache's dictionaries and heap (tracemalloc says 400 for new entries, up to 710 for rewritten).
ENTRY_OVERHEAD_BYTES = 700

_TIER: CacheTier = "redis"

#: More would save no more processor time and only make answers longer: 64
#: embeddings of 16 KB take 10 ms on a 1 Gbit/s wire, well inside the time limit.
_KEYS_PER_ROUND_TRIP = 64

#: One failure may be the event loop held up for longer than the time limit; two are the server's.
_FAILURES_UNTIL_DOWN = 2


class _Entry(NamedTuple):
    value: bytes
    ttl_seconds: float
    size_bytes: int


class MemoryStore:
    """The least recently used goes first once ``max_bytes`` are held, overheads included.

    It holds bytes, as Redis does, rather than parsed values: its bound is exact, nobody can change
    a value that others share, and each read is checked in the same way; parsing costs 10 to 40 µs.
    """

    def __init__(
        self, *, max_bytes: int = 64 << 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries: TLRUCache[str, _Entry] = TLRUCache(
            max_bytes,
            ttu=lambda key, entry, now: now + entry.ttl_seconds,
            timer=clock,
            getsizeof=lambda entry: entry.size_bytes,
        )

    @property
    def size_bytes(self) -> int:
        return int(self._entries.currsize)

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        entries = map(self._entries.get, keys)
        return [entry.value if entry else None for entry in entries]

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        """Items of (key, value, time to live in seconds); one that is over removes its key."""
        for key, value, ttl_seconds in items:
            entry = _Entry(value, ttl_seconds, len(key) + len(value) + ENTRY_OVERHEAD_BYTES)
            if entry.size_bytes <= self._entries.maxsize:
                self._entries[key] = entry
            else:
                self._entries.pop(key, None)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._entries.pop(key, None)

    async def close(self) -> None:
        self._entries.clear()


def redis_client(url: str) -> Redis:
    """For callers that limit the time of a whole round trip, and try again themselves. Raises
    ``ValueError`` for a URL that is none of Redis."""
    # Protocol 2, because with 3 it does not notice that a pooled connection died
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )


class RedisStore:
    """Redis, or a server that speaks as it does. An outage is a miss, and soon a fast one.

    Each call is one round trip, which calls made meanwhile share: a look-up that takes 90 µs of
    processor time on its own takes 9 among 64. Reads and writes fail apart: a server that is
    full, or a replica, still answers reads.

    ``url`` is ``redis://``, ``rediss://`` or ``unix://``, and may hold a password. A round trip
    takes at most ``timeout_seconds``, connecting included. After two that failed in a row nothing
    is asked for ``breaker_seconds``, then one caller tries.

    So an outage costs a look-up at most the time of two round trips, however many callers there
    are, and once it is known, one of them the time of one in every ``breaker_seconds``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.1,
        breaker_seconds: float = 1.0,
        prefix: str = "imagewarden:",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ``ValueError`` for a URL that is none of Redis."""
        self._redis = redis_client(url)
        self._timeout_seconds = timeout_seconds
        self._prefix = prefix
        self._reads: _Lane[str, bytes | None] = _Lane(
            "read", self._read, timeout_seconds, breaker_seconds, clock, self._show_health
        )
        self._writes: _Lane[Write, object] = _Lane(
            "write", self._write, timeout_seconds, breaker_seconds, clock, self._show_health
        )

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        names = [self._prefix + key for key in keys]
        return await self._reads.ask(names) or [None] * len(names)

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        """Items of (key, value, time to live in seconds); one that is over removes its key."""
        await self._writes.ask([(self._prefix + key, value, ttl) for key, value, ttl in items])

    async def delete(self, keys: Sequence[str]) -> None:
        await self.put([(key, b"", 0) for key in keys])

    async def close(self) -> None:
        await self._reads.close()
        await self._writes.close()
        try:
            # TLS waits for the other side's goodbye, which a frozen server never says
            async with asyncio.timeout(self._timeout_seconds):
                await self._redis.aclose()
        except (RedisError, OSError) as error:
            _log.warning("cache_not_closed", tier=_TIER, error=_told(error))

    async def _read(self, names: Sequence[str]) -> Sequence[bytes | None]:
        values: object = await self._redis.mget(names)
        if not isinstance(values, list) or len(values) != len(names):
            raise InvalidResponse(f"no answer for each of {len(names)} keys")
        return [value if isinstance(value, bytes) else None for value in values]

    async def _write(self, items: Sequence[Write]) -> Sequence[object]:
        pipeline = self._redis.pipeline(transaction=False)
        for name, value, ttl_seconds in items:
            milliseconds = int(ttl_seconds * 1000)
            if milliseconds > 0:
                pipeline.set(name, value, px=milliseconds)
            else:
                pipeline.delete(name)
        answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _show_health(self) -> None:
        telemetry.CACHE_UP.labels(_TIER).set(not (self._reads.down or self._writes.down))


class _Lane(Generic[T, R]):
    """One kind of operation: calls share round trips, and a breaker keeps outages cheap."""

    def __init__(
        self,
        operation: str,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        timeout_seconds: float,
        breaker_seconds: float,
        clock: Callable[[], float],
        show_health: Callable[[], None],
    ) -> None:
        self._operation = operation
        self._errors = telemetry.CACHE_ERRORS.labels(_TIER, operation)  # there from 0 on
        self._send = send
        self._timeout_seconds = timeout_seconds
        self._breaker_seconds = breaker_seconds
        self._clock = clock
        self._show_health = show_health
        self._batcher: Batcher[Sequence[T], Sequence[R] | None] = Batcher(
            self._answer, max_weight=_KEYS_PER_ROUND_TRIP, max_wait_seconds=0
        )
        self._running: asyncio.Task[None] | None = None
        self._failures = 0  # in a row
        self._next_try = -float("inf")

    @property
    def down(self) -> bool:
        return self._failures >= _FAILURES_UNTIL_DOWN

    @property
    def _blocked(self) -> bool:
        return self.down and self._clock() < self._next_try

    async def ask(self, items: Sequence[T]) -> Sequence[R] | None:
        """One answer for each item, or None where there are none to be had now."""
        if not items or self._blocked:
            return None
        if self.down:  # alone, for nobody else should wait to learn whether it is back
            self._next_try = self._clock() + self._breaker_seconds
            return (await self._round_trip([items]))[0]
        if self._running is None:
            self._running = asyncio.create_task(self._batcher.run(), name=self._operation)
        return await self._batcher.submit(items, weight=len(items))

    async def close(self) -> None:
        """Ends it, and whoever waits for an answer."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._batcher.close()

    async def _answer(self, calls: Sequence[Sequence[T]]) -> Sequence[Sequence[R] | None]:
        if self.down:  # since these calls came in
            return [None] * len(calls)
        return await self._round_trip(calls)

    async def _round_trip(self, calls: Sequence[Sequence[T]]) -> Sequence[Sequence[R] | None]:
        items = [item for call in calls for item in call]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answers = await self._send(items)
        # ValueError is what the client's parser says of numbers that are none
        except (RedisError, OSError, ValueError) as error:
            self._failed(error)
            return [None] * len(calls)
        self._succeeded()
        rest = iter(answers)
        return [list(islice(rest, len(call))) for call in calls]

    def _failed(self, error: Exception) -> None:
        self._errors.inc()
        self._failures += 1
        self._next_try = self._clock() + self._breaker_seconds
        if self._failures == _FAILURES_UNTIL_DOWN:
            _log.warning("cache_down", tier=_TIER, operation=self._operation, error=_told(error))
            self._show_health()

    def _succeeded(self) -> None:
        if self.down:
            _log.info("cache_up", tier=_TIER, operation=self._operation)
        self._failures = 0
        self._show_health()


def _told(error: Exception) -> str:
    """The client's messages name host and port; never the password, nor a key or value, which
    Redis quotes of a command that it does not know."""
    return f"{type(error).__name__}: {str(error).partition(', with args')[0]}"
