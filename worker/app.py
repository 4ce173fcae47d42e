"""The composition root: builds the parts from settings, starts, drains, stops.

The only module that knows which implementation stands behind a Protocol.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from worker import __version__, telemetry
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.decode import DecoderPool
from worker.egress import EgressPolicy
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import Misconfigured
from worker.examine import Examiner
from worker.fetch import HttpFetcher
from worker.judge import Judge
from worker.pipeline import Limits, Pipeline, Topics
from worker.policy_yaml import load_policy
from worker.publish import KafkaPublisher
from worker.reload import PolicyStore
from worker.settings import Settings
from worker.source import KafkaSource
from worker.stores import MemoryStore, RedisStore
from worker.telemetry import Endpoints, Health
from worker.types import Embedding, Encoder, Message

T = TypeVar("T")

_log = structlog.get_logger(__name__)

#: Older than this, the last poll says that the event loop or the consumer is stuck.
_STUCK_AFTER_SECONDS = 30.0


def load_model(settings: Settings) -> Encoder:
    """The encoder that the settings name, or else the one the first policy was written for.

    Takes seconds, and blocks. Raises ``Misconfigured``.
    """
    from worker.embed import load_encoder  # torch: only a process that embeds pays for it

    model = settings.model
    name = model.name or load_policy(Path(settings.policies[0])).model
    encoder = load_encoder(
        name,
        checkpoint=model.checkpoint,
        model_config=model.config,
        device=model.device,
        precision=model.precision,
    )
    encoder.warm_up()
    return encoder


@asynccontextmanager
async def examiner_of(
    settings: Settings, encoder: Encoder, keep: Callable[[Embedding], Awaitable[None]]
) -> AsyncIterator[Examiner]:
    """A running examiner; ``keep`` publishes what is to be kept."""
    async with AsyncExitStack() as parts:
        fetcher = HttpFetcher(
            egress=EgressPolicy(ports=settings.fetch.ports, allow=settings.fetch.allow),
            total_timeout_seconds=settings.fetch.total_timeout_seconds,
            connect_timeout_seconds=settings.fetch.connect_timeout_seconds,
            max_bytes=settings.fetch.max_bytes,
            max_redirects=settings.fetch.max_redirects,
            attempts=settings.fetch.attempts,
        )
        parts.push_async_callback(fetcher.close)
        decoder = DecoderPool(
            processes=settings.decode.processes,
            timeout_seconds=settings.decode.timeout_seconds,
            memory_bytes=settings.decode.memory_bytes,
            max_pixels=settings.decode.max_pixels,
        )
        parts.push_async_callback(decoder.close)
        await decoder.start()
        stores: Stores = [("memory", MemoryStore(max_bytes=settings.cache.memory_max_bytes))]
        if settings.redis.url is not None:
            redis = RedisStore(
                settings.redis.url.get_secret_value(),
                timeout_seconds=settings.redis.timeout_seconds,
                breaker_seconds=settings.redis.breaker_seconds,
                prefix=settings.redis.prefix,
            )
            parts.push_async_callback(redis.close)
            stores = [*stores, ("redis", redis)]
        embeddings = EmbeddingCache(
            stores,
            dimension=encoder.info.dimension,
            ttl_seconds=settings.cache.embedding_ttl_seconds,
            encode=encode_embedding,
            parse=parse_embedding,
        )
        urls = UrlCache(
            stores,
            url_key=_url_key(settings),
            ttl_seconds=settings.cache.url_ttl_seconds,
            revalidate_seconds=settings.cache.url_revalidate_seconds,
        )
        examiner = Examiner(
            fetcher=fetcher,
            decoder=decoder,
            encoder=encoder,
            embeddings=embeddings,
            urls=urls,
            keep=keep,
            images_in_work=settings.work.images,
            batch_rows=settings.model.batch_rows or encoder.preferred_batch,
            batch_wait_seconds=settings.model.batch_wait_seconds,
            batches_in_flight=2,
        )
        running = asyncio.create_task(examiner.run())
        try:
            yield examiner
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _url_key(settings: Settings) -> bytes:
    if settings.cache.url_key is None:
        if settings.redis.url is not None:
            _log.info(
                "no url_key: what URLs served is not shared between workers",
                set="IMAGEWARDEN_CACHE__URL_KEY",
            )
        return secrets.token_bytes(32)
    return settings.cache.url_key.get_secret_value().encode()


class _Probes:
    """What /livez and /readyz say, from whichever thread asks."""

    def __init__(self) -> None:
        self.waiting_for = "the model to load"
        self.pipeline: Pipeline | None = None
        self.stopping = False

    def live(self) -> Health:
        if self.pipeline is None:
            return Health(True, f"starting: waiting for {self.waiting_for}")
        silent = time.monotonic() - self.pipeline.polled_at
        return Health(silent < _STUCK_AFTER_SECONDS, f"last poll {silent:.1f} s ago")

    def ready(self) -> Health:
        if self.stopping:
            return Health(False, "stopping")
        if self.pipeline is None:
            return Health(False, f"waiting for {self.waiting_for}")
        return Health(True, "a canary image went through the model, and the group is being joined")


async def run_worker(
    settings: Settings, *, load: Callable[[Settings], Encoder] = load_model
) -> None:
    """The service, until SIGTERM or Ctrl-C: the first drains, commits and leaves the group, a
    second one exits at once.

    Raises ``Misconfigured`` before anything connects.
    """
    probes = _Probes()
    stop = _stop_on_signals(probes)
    async with AsyncExitStack() as parts:
        started = await _unless(stop, _start(settings, load, probes, parts))
        if started is None:
            _log.info("stopped before it was ready")
            return
        pipeline, policies = started
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(policies.watch())
            await pipeline.run(stop)
            watching.cancel()
    _log.info("stopped", worker=settings.worker)


async def _start(
    settings: Settings,
    load: Callable[[Settings], Encoder],
    probes: _Probes,
    parts: AsyncExitStack,
) -> tuple[Pipeline, PolicyStore]:
    """Builds the parts, each to be closed by ``parts`` in the opposite order."""
    paths = [Path(path) for path in settings.policies]
    for path in paths:
        load_policy(path)  # a typo should not wait for the model to load
    endpoints = _endpoints(settings, probes)
    parts.callback(endpoints.close)
    _log.info("serving", address=endpoints.address, worker=settings.worker)

    encoder = await asyncio.to_thread(load, settings)
    policies = PolicyStore(paths, encoder)
    await policies.load_all()
    _tell(settings, encoder)

    probes.waiting_for = "the broker"
    kafka = settings.kafka
    publisher = KafkaPublisher(
        bootstrap=kafka.bootstrap,
        client_id=settings.worker,
        max_message_bytes=kafka.message_max_bytes,
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

    examiner = await parts.enter_async_context(examiner_of(settings, encoder, keep))
    source = KafkaSource(
        bootstrap=kafka.bootstrap,
        topics=[kafka.requests_topic],
        group=kafka.group,
        client_id=settings.worker,
        session_timeout_seconds=kafka.session_timeout_seconds,
    )
    pipeline = Pipeline(
        source=source,
        publisher=publisher,
        judge=Judge(
            examiner=examiner, policies=policies, model=encoder.info, worker=settings.worker
        ),
        topics=Topics(kafka.verdicts_topic, kafka.dead_letters_topic),
        limits=Limits(
            in_flight=settings.work.in_flight,
            request_bytes=kafka.request_max_bytes,
            commit_interval_seconds=kafka.commit_interval_seconds,
            drain_seconds=settings.work.drain_seconds,
        ),
        worker=settings.worker,
    )
    parts.push_async_callback(source.close)
    await source.start(drain=pipeline.drain, forget=pipeline.forget)
    probes.pipeline = pipeline
    telemetry.READY.set(1)
    _log.info("ready", group=kafka.group, topic=kafka.requests_topic)
    return pipeline, policies


def _endpoints(settings: Settings, probes: _Probes) -> Endpoints:
    http = settings.http
    try:
        return Endpoints(http.host, http.port, live=probes.live, ready=probes.ready)
    except OSError as error:
        raise Misconfigured(
            f"cannot serve metrics on {http.host}:{http.port} ({error.strerror}); set "
            "IMAGEWARDEN_HTTP__HOST and IMAGEWARDEN_HTTP__PORT to a free address (port 0 takes one)"
        ) from None


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
        }
    )
    _log.info(
        "model loaded",
        model=model.name,
        weights=model.weights_digest,
        precision=model.precision,
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


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives, or None if ``stop`` comes first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for other in (stopping, task):
        if not other.done():
            other.cancel()
    await asyncio.wait({task, stopping})
    return None if task.cancelled() else task.result()
