"""One run in one delivery mode: everything started, the plan carried out, all read at the end."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.apache_kafka import KafkaCluster
from tests.chaos.afterwards import Pauses, groups_of, read_topics, standing
from tests.chaos.checks import Evidence
from tests.chaos.director import Director, Done
from tests.chaos.fleet import Slot
from tests.chaos.images import UnreliableImages
from tests.chaos.load import gallery, load_of, publish
from tests.chaos.plan import Fault, Scale
from tests.conftest import REPOSITORY
from tests.contract.redis_server import Server as Redis
from tests.e2e.scene import FAKE_WORKER, write_policy
from worker.demo.stage import Stage
from worker.embedded import embedded_redis
from worker.settings import KafkaSettings
from worker.topics import ensure_topics

#: More than the fleet has workers, so that each has several and some move whenever one comes.
PARTITIONS = 12

_RETRIES = 3
_REAL_WORKER = (sys.executable, "-m", "worker", "run")
_SETTINGS = {
    "PYTHONPATH": str(REPOSITORY),
    "IMAGEWARDEN_DECODE__PROCESSES": "1",
    "IMAGEWARDEN_CACHE__URL_TTL_SECONDS": "0",  # ask each time, if only whether it changed
    "IMAGEWARDEN_HOST__SHARE": "1",  # all images come from one host
    "IMAGEWARDEN_RETRY__ATTEMPTS": str(_RETRIES),
    # All of it sooner than in production, or a run would take hours
    "IMAGEWARDEN_RETRY__DELAY_SECONDS": "4",
    "IMAGEWARDEN_KAFKA__SESSION_TIMEOUT_SECONDS": "6",
    "IMAGEWARDEN_FETCH__TOTAL_TIMEOUT_SECONDS": "5",
    "IMAGEWARDEN_FETCH__CONNECT_TIMEOUT_SECONDS": "1",
    "IMAGEWARDEN_HOST__BREAKER_SECONDS": "2",
    "IMAGEWARDEN_WORK__DRAIN_SECONDS": "10",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """``settle_seconds`` is from the last fault to lag 0; ``started`` counts workers."""

    delivery: str
    seconds: float
    settle_seconds: float
    started: int
    timeline: Sequence[Done]
    evidence: Evidence


async def run(
    *,
    delivery: str,
    scale: Scale,
    plan: Sequence[Fault],
    seed: int,
    cluster: KafkaCluster,
    folder: Path,
) -> Outcome:
    """``folder``, which is there, takes the workers' logs.

    Raises ``RuntimeError`` where a worker does not start or does not stop, and ``TimeoutError``
    where brokers do not come back in sync.
    """
    began = time.monotonic()
    async with AsyncExitStack() as parts:
        servers = parts.enter_context(ExitStack())
        images = await parts.enter_async_context(UnreliableImages(gallery(seed, scale.requests)))
        on = await _stage(cluster, servers, images, folder)
        fleet = _fleet(on, scale, delivery)
        for slot in fleet:
            parts.callback(slot.close)
            slot.start()
        director = Director(
            slots=fleet, cluster=cluster, redis=Redis(on.redis), images=images, parts=servers
        )
        items = load_of(seed, scale.requests, images)
        pauses = Pauses(on)
        async with _meanwhile(_supervise(fleet)):
            await asyncio.gather(*(slot.ready() for slot in fleet))
            _say(f"{delivery}: {len(fleet)} workers are ready; {len(plan)} faults begin")
            async with _meanwhile(pauses.watch()), asyncio.TaskGroup() as group:
                group.create_task(director.carry_out(plan))
                topic = on.topics.requests_topic
                group.create_task(publish(items, on.broker, topic, scale.seconds))
            _say(f"{delivery}: all faults are over, and all requests published")
            over = time.monotonic()
            await asyncio.gather(*(slot.ready() for slot in fleet))
            stands = await standing(on, PARTITIONS)
            settled = time.monotonic()
        await asyncio.gather(*(slot.leave() for slot in fleet))
        topics = await read_topics(on)
        groups = await groups_of(on, stands, PARTITIONS)
    return Outcome(
        delivery=delivery,
        seconds=time.monotonic() - began,
        settle_seconds=settled - over,
        started=sum(slot.started for slot in fleet),
        timeline=director.done,
        evidence=Evidence(
            exactly_once=delivery == "exactly_once",
            max_retries=_RETRIES,
            sent=len(items),
            asked=topics.asked,
            said=topics.said,
            dead=topics.dead,
            retried=topics.retried,
            exits=[exit for slot in fleet for exit in slot.exits],
            groups=groups,
            longest_pause_seconds=pauses.longest_seconds,
            planned=Counter(fault.kind.value for fault in plan),
            done=Counter(done.fault.kind.value for done in director.done),
        ),
    )


async def _stage(
    cluster: KafkaCluster, servers: ExitStack, images: UnreliableImages, folder: Path
) -> Stage:
    """With topics of its own."""
    mark = uuid.uuid4().hex[:8]
    names = {
        key: f"{name}.{mark}" for key, name in KafkaSettings() if key.endswith("_topic") and name
    }
    topics = KafkaSettings.model_validate({"group": f"imagewarden.{mark}", **names})
    await ensure_topics(cluster.bootstrap, dict.fromkeys(names.values(), PARTITIONS))
    policy = folder / "policy.yaml"
    write_policy(policy)
    return Stage(
        broker=cluster.bootstrap,
        redis=servers.enter_context(embedded_redis()),
        images=images,
        policy=policy,
        folder=folder,
        topics=topics,
    )


def _fleet(on: Stage, scale: Scale, delivery: str) -> list[Slot]:
    settings = {**_SETTINGS, "IMAGEWARDEN_DELIVERY": delivery}
    fleet = [Slot(f"slot-{number}", on, FAKE_WORKER, settings) for number in range(scale.slots)]
    if scale.pocket:
        policy = str(REPOSITORY / "policies" / "pocket.yaml")
        settings = {**settings, "IMAGEWARDEN_POLICIES": policy}
        fleet.append(Slot("slot-pocket", on, _REAL_WORKER, settings))
    return fleet


async def _supervise(fleet: Sequence[Slot]) -> None:
    """As whatever runs workers in production does."""
    while True:
        for slot in fleet:
            if not slot.lock.locked():
                slot.restart_if_ended()
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _meanwhile(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Ended with the block; if it fails, so does the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


def _say(what: str) -> None:
    print(f"{time.strftime('%T')} {what}", flush=True)
