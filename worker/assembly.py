"""What examines images, built from settings: for the worker, and for commands that do without a
topic."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from worker.brake import Brake
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.decode import DecoderPool
from worker.egress import EgressPolicy
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import Stage
from worker.examine import Examiner
from worker.fetch import HttpFetcher, tls_context
from worker.hosts import Hosts
from worker.policy_yaml import load_policy
from worker.proxy import EgressProxy
from worker.redis_counts import RedisCounts
from worker.seams import Encoder
from worker.settings import Settings
from worker.stores import MemoryStore, RedisStore, redis_client
from worker.types import Embedding
from worker.watch import watching_stages

#: One for each stream of the model: while one is computed, the next is formed and handed over.
BATCHES_IN_FLIGHT = 2

_log = structlog.get_logger(__name__)


def load_model(settings: Settings) -> Encoder:
    """The encoder that the settings name, or else the one the first policy was written for.

    Takes seconds, and blocks. Raises ``Misconfigured``.
    """
    from worker.embed import load_encoder  # torch: only a process that embeds pays for it

    model = settings.model
    name = model.name or load_policy(Path(settings.policies[0]), unsolved=True).model
    encoder = load_encoder(
        name,
        checkpoint=model.checkpoint,
        model_config=model.config,
        device=model.device,
        precision=model.precision,
        engine=model.engine,
        batch_rows=model.batch_rows,
    )
    encoder.warm_up()
    return encoder


def fetcher_of(settings: Settings) -> HttpFetcher:
    fetch = settings.fetch
    proxy = fetch.egress_proxy
    return HttpFetcher(
        egress=EgressPolicy(ports=fetch.ports, allow=fetch.allow),
        proxy=EgressProxy.parse(proxy.get_secret_value()) if proxy else None,
        ssl_context=tls_context(str(fetch.ca_file) if fetch.ca_file else None),
        total_timeout_seconds=fetch.total_timeout_seconds,
        connect_timeout_seconds=fetch.connect_timeout_seconds,
        read_timeout_seconds=fetch.read_timeout_seconds,
        max_bytes=fetch.max_bytes,
        max_redirects=fetch.max_redirects,
        attempts=fetch.attempts,
    )


def redis_of(settings: Settings) -> RedisStore | None:
    """Where the settings name one."""
    if settings.redis.url is None:
        return None
    return RedisStore(
        settings.redis.url.get_secret_value(),
        timeout_seconds=settings.redis.timeout_seconds,
        breaker_seconds=settings.redis.breaker_seconds,
        prefix=settings.redis.prefix,
    )


def decoder_of(settings: Settings, *, hashed: bool) -> DecoderPool:
    """Not started yet; ``hashed``: it computes perceptual hashes."""
    return DecoderPool(
        processes=settings.decode.processes,
        timeout_seconds=settings.decode.timeout_seconds,
        memory_bytes=settings.decode.memory_bytes,
        max_pixels=settings.decode.max_pixels,
        hashed=hashed,
    )


@asynccontextmanager
async def examiner_of(
    settings: Settings,
    encoder: Encoder,
    keep: Callable[[Embedding], Awaitable[None]],
    *,
    tiers: Stores | None = None,
) -> AsyncIterator[Examiner]:
    """A running examiner; ``keep`` publishes what is to be kept. ``tiers`` are what it looks
    embeddings up in: by themselves, those of a worker."""
    async with AsyncExitStack() as parts:
        fetcher = fetcher_of(settings)
        parts.push_async_callback(fetcher.close)
        decoder = decoder_of(settings, hashed=settings.decode.perceptual_hash)
        parts.push_async_callback(decoder.close)
        await decoder.start()
        stores: Stores = [("memory", MemoryStore(max_bytes=settings.cache.memory_max_bytes))]
        if redis := redis_of(settings):
            parts.push_async_callback(redis.close)
            stores = [*stores, ("redis", redis)]
        embeddings = EmbeddingCache(
            stores if tiers is None else tiers,
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
        hosts = Hosts(
            slots=settings.work.images,
            share=settings.host.share,
            failures=settings.host.failures,
            silence_seconds=settings.host.silence_seconds,
            breaker_seconds=settings.host.breaker_seconds,
        )
        examiner = Examiner(
            fetcher=fetcher,
            hosts=hosts,
            decoder=decoder,
            encoder=encoder,
            embeddings=embeddings,
            urls=urls,
            keep=keep,
            images_in_work=settings.work.images,
            low_share=settings.work.low_share,
            batch_rows=settings.model.batch_rows or encoder.preferred_batch,
            batch_wait_seconds=settings.model.batch_wait_seconds,
            batches_in_flight=BATCHES_IN_FLIGHT,
        )
        parts.enter_context(
            watching_stages(lambda: {**examiner.loads(), Stage.DECODE.value: decoder.load})
        )
        running = asyncio.create_task(examiner.run())
        try:
            yield examiner
        finally:
            running.cancel()
            [ended] = await asyncio.gather(running, return_exceptions=True)
            if isinstance(ended, Exception):
                _log.error("the model's batches ended", exc_info=ended)


def brake_of(settings: Settings, parts: AsyncExitStack) -> Brake:
    """Counting in Redis where the settings name one, which ``parts`` closes."""
    redis = settings.redis
    if redis.url is None:
        return Brake(None)
    fleet = RedisCounts(
        redis_client(redis.url.get_secret_value()),
        timeout_seconds=redis.timeout_seconds,
        prefix=redis.prefix,
    )
    parts.push_async_callback(fleet.close)
    return Brake(fleet, breaker_seconds=redis.breaker_seconds)


def _url_key(settings: Settings) -> bytes:
    if settings.cache.url_key is None:
        if settings.redis.url is not None:
            _log.info(
                "no url_key: what URLs served is not shared between workers",
                set="IMAGEWARDEN_CACHE__URL_KEY",
            )
        return secrets.token_bytes(32)
    return settings.cache.url_key.get_secret_value().encode()
