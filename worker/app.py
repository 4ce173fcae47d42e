"""The composition root: builds the parts from settings, starts, drains, stops.

With ``assembly``, which examines images, and ``lanes``, which reads topics, the only module that
knows which implementation stands behind a Protocol.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import structlog

from worker import __version__, telemetry, tracing
from worker.assembly import brake_of, examiner_of, load_model
from worker.background import spare_what_is_loaded
from worker.brake import Brake
from worker.broker import servers, until_reachable
from worker.embedding_format import encode_embedding
from worker.endpoints import Health, open_endpoints
from worker.errors import Halted
from worker.lanes import Judging, open_pipelines
from worker.malloc import one_arena
from worker.perceptual import check_lists
from worker.pipeline import Pipeline
from worker.policy_yaml import load_policy
from worker.publish import KafkaPublisher
from worker.reload import PolicyStore
from worker.seams import Encoder
from worker.settings import Settings
from worker.topics import topic_limits
from worker.types import Embedding, Message
from worker.watch import watching_device, watching_policies

T = TypeVar("T")

_log = structlog.get_logger(__name__)

#: Older than this, the last poll says that the event loop or the consumer is stuck.
_STUCK_AFTER_SECONDS = 30.0


class _Probes:
    """What /livez and /readyz say, from whichever thread asks."""

    def __init__(self) -> None:
        self.waiting_for = "the model to load"
        self.pipelines: Sequence[Pipeline] = ()
        self.stopping = False

    def live(self) -> Health:
        if not self.pipelines:
            return Health(True, f"starting: waiting for {self.waiting_for}")
        silent = time.monotonic() - min(pipeline.polled_at for pipeline in self.pipelines)
        return Health(silent < _STUCK_AFTER_SECONDS, f"last poll {silent:.1f} s ago")

    def ready(self) -> Health:
        if self.stopping:
            return Health(False, "stopping")
        if not self.pipelines:
            return Health(False, f"waiting for {self.waiting_for}")
        return Health(True, "a canary image went through the model, and the group is being joined")


async def run_worker(
    settings: Settings, *, load: Callable[[Settings], Encoder] = load_model
) -> None:
    """The service, until SIGTERM or Ctrl-C: the first drains, commits and leaves the group, a
    second one exits at once.

    Raises ``Misconfigured`` before anything connects, ``Halted`` where going on would do harm.
    """
    one_arena()
    probes = _Probes()
    stop = _stop_on_signals(probes)
    async with AsyncExitStack() as parts:
        started = await _unless(stop, _start(settings, load, probes, parts))
        if started is None:
            _log.info("stopped before it was ready")
            return
        pipelines, policies, brake = started
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(each) for each in (policies.watch(), brake.run())]
                # of the group too: when one fails, the others end before the parts are closed
                await asyncio.wait([group.create_task(each.run(stop)) for each in pipelines])
                for task in background:
                    task.cancel()
        except* Halted as halted:
            raise _first(halted) from None
    _log.info("stopped", worker=settings.worker)


async def _start(
    settings: Settings,
    load: Callable[[Settings], Encoder],
    probes: _Probes,
    parts: AsyncExitStack,
) -> tuple[Sequence[Pipeline], PolicyStore, Brake]:
    """Builds the parts, each to be closed by ``parts`` in the opposite order."""
    paths = [Path(path) for path in settings.policies]
    for path in paths:
        # a typo should not wait for the model to load
        check_lists(load_policy(path), wanted=settings.decode.perceptual_hash)
    if tracing.configured():
        from worker.otel import exporting

        parts.enter_context(tracing.collected(parts.enter_context(exporting(settings.worker))))
    http = settings.http
    endpoints = open_endpoints(http.host, http.port, live=probes.live, ready=probes.ready)
    parts.callback(endpoints.close)
    _log.info("serving", address=endpoints.address, worker=settings.worker)

    encoder = await asyncio.to_thread(load, settings)
    policies = PolicyStore(paths, encoder, hashed=settings.decode.perceptual_hash)
    await policies.load_all()
    spare_what_is_loaded()
    parts.enter_context(watching_policies(policies))
    parts.enter_context(watching_device(encoder))
    _tell(settings, encoder)

    probes.waiting_for = "the broker"
    kafka = settings.kafka
    message_bytes = await _message_bytes(settings)
    publisher = KafkaPublisher(
        bootstrap=kafka.bootstrap,
        client_id=settings.worker,
        max_message_bytes=message_bytes,
        linger_seconds=kafka.linger_seconds,
        compression=kafka.compression,
        options=settings.kafka_security.options(),
    )
    parts.push_async_callback(publisher.close)
    await publisher.start()

    async def keep(embedding: Embedding) -> None:
        await publisher.publish(
            Message(
                topic=kafka.embeddings_topic,
                key=str(embedding.key).encode(),
                value=encode_embedding(embedding),
            )
        )

    brake = brake_of(settings, parts)
    examiner = await parts.enter_async_context(examiner_of(settings, encoder, keep))
    probes.pipelines = await open_pipelines(
        settings,
        Judging(examiner=examiner, policies=policies, model=encoder.info, brake=brake),
        publisher,
        message_bytes,
        parts,
    )
    telemetry.READY.set(1)
    _log.info("ready", group=kafka.group, topic=kafka.requests_topic, delivery=settings.delivery)
    return probes.pipelines, policies, brake


async def _message_bytes(settings: Settings) -> int:
    """The largest message that all the topics take: one more byte, and it would be refused only
    when it is sent, which a transaction does not survive."""
    kafka = settings.kafka
    written = [
        kafka.verdicts_topic,
        kafka.dead_letters_topic,
        kafka.embeddings_topic,
        *([kafka.retries_topic] if settings.retry.attempts else []),
    ]
    limits = await until_reachable(
        lambda: topic_limits(kafka.bootstrap, written, options=settings.kafka_security.options()),
        client="topic limits",
        bootstrap=servers(kafka.bootstrap),
    )
    for topic, limit in limits.items():
        if limit < kafka.message_max_bytes:
            _log.info("a topic takes less than the setting", topic=topic, max_message_bytes=limit)
    return min([kafka.message_max_bytes, *limits.values()])


def _tell(settings: Settings, encoder: Encoder) -> None:
    """What runs, in the log and in metrics."""
    model = encoder.info
    telemetry.BUILD_INFO.info({"version": __version__})
    telemetry.MODEL_INFO.info(
        {
            "name": model.name,
            "weights": model.weights_digest,
            "preprocess": model.preprocess.digest,
            "precision": model.precision,
            "engine": encoder.engine,
        }
    )
    _log.info(
        "model loaded",
        model=model.name,
        weights=model.weights_digest,
        precision=model.precision,
        engine=encoder.engine,
        policies=list(settings.policies),
    )
    if model.name == "pocket":
        _log.warning("the pocket model is for trying out, tests and air-gapped demonstrations")


def _stop_on_signals(probes: _Probes) -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        _log.info("stopping", signal=number.name, again="exits at once")
        probes.stopping = True
        telemetry.READY.set(0)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


def _first(group: BaseExceptionGroup[Halted]) -> BaseException:
    """The first that was raised, out of however many groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives, or None if ``stop`` comes first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for other in (stopping, task):
        if not other.done():
            other.cancel()
    await asyncio.wait({task, stopping})
    return None if task.cancelled() else task.result()
