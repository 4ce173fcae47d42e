"""From a URL or bytes to an embedding: caches, download, decode, model, and what is kept.

The second half of the main path, on its own because the command line examines images too, with no
topic in sight.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from worker import telemetry
from worker.batching import Batcher
from worker.cache import EmbeddingCache, UrlCache
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.flights import Flights
from worker.types import (
    CacheTier,
    Decoder,
    Embedding,
    EmbeddingKey,
    Encoder,
    Fetcher,
    Float32Rows,
    FramePlan,
    NotModified,
    Pixels,
    Seen,
)

#: float16 keeps what a cosine needs, in half the memory; its largest value is far above any unit
#: vector's coordinates.
_KEPT = np.float16


@dataclass(frozen=True, slots=True)
class Examined:
    """An embedding, the tier that had it, and the milliseconds each stage took for it."""

    embedding: Embedding
    tier: CacheTier
    timings_ms: dict[str, float] = field(default_factory=dict)


class Examiner:
    """Examines images, each URL and each content once however many ask at the same time.

    Memory: at most ``images_in_work`` images are between the start of their download and the end
    of their embedding, so at most ``images_in_work`` times the fetcher's byte cap is held in
    bodies, and as many decoded images; askers beyond that wait with nothing but their request.
    ``keep`` is given each new embedding and returns once it is published; only then is it cached,
    so that none is cached and never published.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        decoder: Decoder,
        encoder: Encoder,
        embeddings: EmbeddingCache,
        urls: UrlCache,
        keep: Callable[[Embedding], Awaitable[None]],
        images_in_work: int,
        batch_rows: int,
        batch_wait_seconds: float,
        batches_in_flight: int,
    ) -> None:
        self._fetcher = fetcher
        self._decoder = decoder
        self._encoder = encoder
        # A thread for each batch in flight: the model never waits for the next one to be formed
        self._threads = ThreadPoolExecutor(batches_in_flight, thread_name_prefix="encode")
        self._embeddings = embeddings
        self._urls = urls
        self._keep = keep
        self._model = encoder.info.digest
        self._slots = asyncio.Semaphore(images_in_work)
        self._batcher: Batcher[Pixels, Float32Rows] = Batcher(
            self._encode,
            max_weight=batch_rows,
            max_wait_seconds=batch_wait_seconds,
            concurrency=batches_in_flight,
        )
        self._downloads: Flights[tuple[str, str, str | None], Examined] = Flights()
        self._contents: Flights[EmbeddingKey, Examined] = Flights()

    async def run(self) -> None:
        """Runs the model's batches until cancelled."""
        try:
            await self._batcher.run()
        finally:
            await self._downloads.close()
            await self._contents.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def by_url(self, url: str, plan: FramePlan, *, sha256: str | None = None) -> Examined:
        """Raises ``Unexaminable``. ``sha256`` is what the content must hash to."""
        known = await self._urls.get(url)
        seen, tier = known or (None, "none")
        usable = seen and self._urls.fresh(seen) and sha256 in (None, seen.sha256)
        telemetry.CACHE_ANSWERS.labels("url", tier if usable else "none").inc()
        if seen and usable and (cached := await self._cached(seen.sha256, plan)):
            return cached
        examined, joined = await self._downloads.join(
            (self._urls.keyed_hash(url), plan.digest, sha256),
            lambda: self._download(url, plan, sha256, seen),
        )
        return Examined(examined.embedding, "in_flight") if joined else examined

    async def by_content(
        self, body: bytes, plan: FramePlan, *, sha256: str | None = None
    ) -> Examined:
        """Raises ``Unexaminable``. ``sha256`` is what the body must hash to."""
        digest = _checked_digest(body, sha256)
        if cached := await self._cached(digest, plan):
            return cached
        async with self._slots:
            return await self._embed_once(body, digest, plan)

    async def _download(
        self, url: str, plan: FramePlan, sha256: str | None, seen: Seen | None
    ) -> Examined:
        timings: dict[str, float] = {}
        async with self._slots:
            # Asking whether it changed helps only where the answer "no" can be used
            stale = seen and seen.etag and await self._cached(seen.sha256, plan)
            with _timed(Stage.FETCH, timings):
                fetched = await self._fetcher.fetch(url, etag=seen.etag if seen and stale else None)
            if isinstance(fetched, NotModified):
                if not (seen and stale):
                    raise Unexaminable(
                        ErrorCode.FETCH_FAILED, Stage.FETCH, "304 to an unconditional request"
                    )
                _check_digest(seen.sha256, sha256)
                await self._urls.put(url, Seen(seen.sha256, seen.etag, time.time()))
                return Examined(stale.embedding, stale.tier, timings)
            digest = _checked_digest(fetched.body, sha256)
            await self._urls.put(url, Seen(digest, fetched.etag, time.time()))
            examined = await self._cached(digest, plan) or await self._embed_once(
                fetched.body, digest, plan
            )
            return Examined(examined.embedding, examined.tier, timings | examined.timings_ms)

    async def _cached(self, sha256: str, plan: FramePlan) -> Examined | None:
        hit = await self._embeddings.get(self._key(sha256, plan))
        telemetry.CACHE_ANSWERS.labels("embedding", hit[1] if hit else "none").inc()
        return Examined(*hit) if hit else None

    async def _embed_once(self, body: bytes, sha256: str, plan: FramePlan) -> Examined:
        key = self._key(sha256, plan)
        examined, joined = await self._contents.join(key, lambda: self._embed(body, key, plan))
        return Examined(examined.embedding, "in_flight") if joined else examined

    async def _embed(self, body: bytes, key: EmbeddingKey, plan: FramePlan) -> Examined:
        timings: dict[str, float] = {}
        with _timed(Stage.DECODE, timings):
            decoded = await self._decoder.decode(
                body, key.sha256, self._encoder.info.preprocess, plan
            )
        with _timed(Stage.EMBED, timings):
            rows = await self._batcher.submit(decoded.pixels, weight=len(decoded.pixels))
        if not np.isfinite(rows).all():
            raise Unexaminable(
                ErrorCode.EMBEDDING_NOT_FINITE,
                Stage.EMBED,
                "the model gave numbers that are not finite for this image",
            )
        embedding = Embedding(key, rows.astype(_KEPT), decoded.facts)
        with _timed(Stage.PUBLISH, timings):
            await self._keep(embedding)
        await self._embeddings.put(embedding)
        return Examined(embedding, "none", timings)

    async def _encode(self, batch: Sequence[Pixels]) -> Sequence[Float32Rows]:
        pixels = np.concatenate(batch)
        telemetry.BATCH_ROWS.observe(len(pixels))
        rows = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._encoder.encode_images, pixels
        )
        if len(rows) != len(pixels):
            raise RuntimeError(f"the encoder gave {len(rows)} rows for {len(pixels)}")
        ends = np.cumsum([len(item) for item in batch])
        return np.split(rows, ends[:-1])

    def _key(self, sha256: str, plan: FramePlan) -> EmbeddingKey:
        return EmbeddingKey(sha256, self._model, plan.digest)


def _checked_digest(body: bytes, expected: str | None) -> str:
    digest = hashlib.sha256(body).hexdigest()
    _check_digest(digest, expected)
    return digest


def _check_digest(digest: str, expected: str | None) -> None:
    if expected not in (None, digest):
        raise Unexaminable(
            ErrorCode.DIGEST_MISMATCH,
            Stage.FETCH,
            f"the content's sha256 is {digest}, the request says {expected}",
        )


@contextmanager
def _timed(stage: Stage, timings: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        elapsed = time.perf_counter() - started
        timings[stage.value] = round(elapsed * 1000, 3)
        telemetry.STAGE_SECONDS.labels(stage.value).observe(elapsed)
