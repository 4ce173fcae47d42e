"""Carries a plan out, on the fleet and on what it stands on, and writes down what was done."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tests.apache_kafka import KafkaCluster
from tests.chaos import groups
from tests.chaos.fleet import Slot
from tests.chaos.images import Failing, UnreliableImages
from tests.chaos.plan import Fault, Kind
from tests.contract.redis_server import Server as Redis

_IN_SYNC_SECONDS = 90.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Done:
    """In seconds from the start of the plan: a fault waits until the one before it on the same
    thing is undone."""

    fault: Fault
    begun: float
    ended: float


class Director:
    """``done`` is the timeline, in the order in which faults ended."""

    def __init__(
        self,
        *,
        slots: Sequence[Slot],
        cluster: KafkaCluster,
        redis: Redis,
        images: UnreliableImages,
        parts: ExitStack,
    ) -> None:
        """``parts`` ends what is started again."""
        self.done: list[Done] = []
        self._slots = slots
        self._cluster = cluster
        self._redis = redis
        self._images = images
        self._parts = parts
        self._locks: defaultdict[object, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def carry_out(self, plan: Sequence[Fault]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(started + fault.at_seconds - loop.time())
                group.create_task(self._do(fault, started))

    async def _do(self, fault: Fault, started: float) -> None:
        loop = asyncio.get_running_loop()
        lock, deed = self._deed(fault)
        async with lock:
            begun = loop.time() - started
            await deed(fault.for_seconds)
        self.done.append(Done(fault, begun, loop.time() - started))

    def _deed(self, fault: Fault) -> tuple[asyncio.Lock, Callable[[float], Awaitable[None]]]:
        """What to hold meanwhile, and what to do for how long."""
        match fault.kind:
            case Kind.KILL_WORKER | Kind.LEAVE | Kind.FREEZE_WORKER | Kind.KILL_DECODER:
                slot = self._slots[fault.target]
                deeds: dict[Kind, Callable[[float], Awaitable[None]]] = {
                    Kind.KILL_WORKER: partial(_away, slot, slot.kill),
                    Kind.LEAVE: partial(_away, slot, slot.leave),
                    Kind.FREEZE_WORKER: slot.freeze,
                    Kind.KILL_DECODER: lambda seconds: slot.kill_decoder(),
                }
                return slot.lock, deeds[fault.kind]
            case Kind.KILL_BROKER:
                return self._locks["brokers"], partial(self._kill_broker, fault.target)
            case Kind.KILL_REDIS:
                return self._locks["redis"], self._kill_redis
            case Kind.FREEZE_REDIS:
                return self._locks["redis"], self._freeze_redis
            case Kind.REFUSE_IMAGES:
                return self._locks["images"], partial(self._images_fail, Failing.REFUSING)
            case Kind.STALL_IMAGES:
                return self._locks["images"], partial(self._images_fail, Failing.STALLING)
            case Kind.DROP_IMAGES:
                return self._locks["images"], partial(self._images_fail, Failing.DROPPING)

    async def _kill_broker(self, number: int, seconds: float) -> None:
        """No two at once: with two of three gone, nothing can be acknowledged."""
        await self._in_sync()
        await asyncio.to_thread(self._cluster.kill, number)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._cluster.start, number)
        await self._in_sync()

    async def _in_sync(self) -> None:
        async with asyncio.timeout(_IN_SYNC_SECONDS):
            while not await asyncio.to_thread(groups.in_sync, self._cluster.bootstrap):
                await asyncio.sleep(_LOOK_SECONDS)

    async def _kill_redis(self, seconds: float) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(seconds)
        self._parts.enter_context(self._redis.started_again())

    async def _freeze_redis(self, seconds: float) -> None:
        with self._redis.frozen():
            await asyncio.sleep(seconds)

    async def _images_fail(self, how: Failing, seconds: float) -> None:
        async with self._images.failing(how):
            await asyncio.sleep(seconds)


async def _away(slot: Slot, end: Callable[[], Awaitable[None]], seconds: float) -> None:
    await end()
    await asyncio.sleep(seconds)
    slot.start()
