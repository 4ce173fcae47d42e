"""From a URL or bytes to an embedding: caches, download, decode, model, and what is kept.

The second half of the main path, on its own because the command line examines images too, with no
topic in sight.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple, overload

import numpy as np
import structlog

from worker import telemetry, tracing
from worker.batch_encoder import BatchEncoder
from worker.cache import EmbeddingCache, UrlCache, are_unit
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.examined import Examined, Outcome, Recognised, shared
from worker.flights import Flights
from worker.hosts import Hosts
from worker.lists import NO_LISTS, Lists
from worker.seams import Decoder, Encoder, Fetcher, TooLarge
from worker.slots import PrioritySlots
from worker.types import (
    Embedding,
    EmbeddingKey,
    Float16Rows,
    Float32Rows,
    FramePlan,
    Load,
    NotModified,
    Seen,
)

_log = structlog.get_logger(__name__)

_WAITED = telemetry.STAGE_WAIT_SECONDS.labels("images")
# Decoders and batches count for themselves: they know who waited
_WORKED = {at: telemetry.STAGE_SECONDS.labels(at.value) for at in (Stage.FETCH, Stage.PUBLISH)}


class _Asked(NamedTuple):
    plan: FramePlan
    lists: Lists
    priority: int


class Examiner:
    """Examines images, each URL and each content once however many ask at the same time.

    An image that is on one of an asker's ``lists`` is ``Recognised`` once it is decoded, and goes
    no further. Only those who ask with equal lists are answered together.

    Memory: at most ``images_in_work`` images are between the start of their download and the end
    of their embedding, so at most ``images_in_work`` times the fetcher's byte cap is held in
    bodies, and as many decoded images; askers beyond that wait with nothing but their request.

    ``priority`` 0 is live traffic; higher numbers go after lower ones, and all that is not live
    together holds at most ``low_share`` (0..1, rounded up to a whole place) of the images in work.
    That holds while nothing live is there, too: a place that is free is what the next live image
    finds. A worker that does nothing live should have a share of 1.

    ``keep`` is given each new embedding and returns once it is published; only then is it cached,
    so that none is cached and never published. One that is ``TooLarge`` for its topic is used once.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        hosts: Hosts,
        decoder: Decoder,
        encoder: Encoder,
        embeddings: EmbeddingCache,
        urls: UrlCache,
        keep: Callable[[Embedding], Awaitable[None]],
        images_in_work: int,
        low_share: float,
        batch_rows: int,
        batch_wait_seconds: float,
        batches_in_flight: int,
    ) -> None:
        self._fetcher = fetcher
        self._hosts = hosts
        self._decoder = decoder
        self._model = encoder.info
        self._encoder = BatchEncoder(
            encoder,
            batch_rows=batch_rows,
            batch_wait_seconds=batch_wait_seconds,
            concurrency=batches_in_flight,
        )
        self._embeddings = embeddings
        self._urls = urls
        self._keep = keep
        self._slots = PrioritySlots(images_in_work)
        self._low_slots = PrioritySlots(math.ceil(low_share * images_in_work))
        # Caches are asked inside the flights: an answer that was on its way when a flight landed
        # would say that there is nothing yet
        self._by_url: Flights[tuple[str, str, str, str | None], Outcome] = Flights()
        self._by_content: Flights[tuple[EmbeddingKey, str], Outcome] = Flights()
        self._in_work: Flights[tuple[EmbeddingKey, str], Outcome] = Flights()

    def loads(self) -> dict[str, Load]:
        """How full it is, by stage; from any thread."""
        images, downloads = self._slots.load, self._hosts.downloading
        return {
            "images": images._replace(waiting=images.waiting + self._hosts.waiting),
            "images_low": self._low_slots.load,
            Stage.FETCH.value: Load(downloads, images.places),
            Stage.EMBED.value: self._encoder.load,
        }

    async def run(self) -> None:
        """Runs the model's batches until cancelled."""
        try:
            await self._encoder.run()
        finally:
            for flights in (self._by_url, self._by_content, self._in_work):
                await flights.close()

    @overload
    async def by_url(
        self, url: str, plan: FramePlan, *, sha256: str | None = None, priority: int = 0
    ) -> Examined: ...

    @overload
    async def by_url(
        self,
        url: str,
        plan: FramePlan,
        *,
        sha256: str | None = None,
        priority: int = 0,
        lists: Lists,
    ) -> Outcome: ...

    async def by_url(
        self,
        url: str,
        plan: FramePlan,
        *,
        sha256: str | None = None,
        priority: int = 0,
        lists: Lists = NO_LISTS,
    ) -> Outcome:
        """Raises ``Unexaminable``. ``sha256`` is what the content must hash to."""
        asked = _Asked(plan, lists, priority)
        key = url, plan.digest, lists.digest, sha256
        return shared(*await self._by_url.join(key, lambda: self._from_url(url, asked, sha256)))

    @overload
    async def by_content(
        self, body: bytes, plan: FramePlan, *, sha256: str | None = None, priority: int = 0
    ) -> Examined: ...

    @overload
    async def by_content(
        self,
        body: bytes,
        plan: FramePlan,
        *,
        sha256: str | None = None,
        priority: int = 0,
        lists: Lists,
    ) -> Outcome: ...

    async def by_content(
        self,
        body: bytes,
        plan: FramePlan,
        *,
        sha256: str | None = None,
        priority: int = 0,
        lists: Lists = NO_LISTS,
    ) -> Outcome:
        """Raises ``Unexaminable``. ``sha256`` is what the body must hash to."""
        asked = _Asked(plan, lists, priority)
        key = self._key(_checked_digest(body, sha256), plan)
        return shared(
            *await self._by_content.join(
                (key, lists.digest), lambda: self._from_body(body, key, asked)
            )
        )

    async def _from_url(self, url: str, asked: _Asked, sha256: str | None) -> Outcome:
        seen, tier = await self._urls.get(url) or (None, "none")
        fresh = seen and self._urls.fresh(seen) and sha256 in (None, seen.sha256)
        telemetry.CACHE_ANSWERS.labels("url", tier if fresh else "none").inc()
        # Asking whether it changed helps only where the answer "no" can be used
        useful = seen if seen and (fresh or seen.etag) else None
        cached = (
            await self._cached(self._key(useful.sha256, asked.plan), asked.lists)
            if useful
            else None
        )
        if cached and fresh:
            return cached
        known = (useful, cached) if useful and cached else None
        return await self._download(url, asked, sha256, known)

    async def _from_body(self, body: bytes, key: EmbeddingKey, asked: _Asked) -> Outcome:
        if cached := await self._cached(key, asked.lists):
            return cached
        since = time.perf_counter()
        async with self._low_slot(asked.priority), self._slots.hold(asked.priority):
            _WAITED.observe(time.perf_counter() - since)
            return await self._embed_once(body, key, asked)

    async def _download(
        self, url: str, asked: _Asked, sha256: str | None, known: tuple[Seen, Outcome] | None
    ) -> Outcome:
        """``known`` is what it served once, and may serve still."""
        timings: dict[str, float] = {}
        since = time.perf_counter()
        async with (
            self._low_slot(asked.priority),
            self._hosts.place(url) as place,
            self._slots.hold(asked.priority),
        ):
            _WAITED.observe(time.perf_counter() - since)
            with _timed(Stage.FETCH, timings), place.attempt():
                fetched = await self._fetcher.fetch(
                    url,
                    etag=known[0].etag if known else None,
                    worth_retrying=place.worth_retrying,
                )
            if isinstance(fetched, NotModified):
                telemetry.FETCHES.labels("not_modified").inc()
                if not known:
                    raise Unexaminable(
                        ErrorCode.FETCH_FAILED, Stage.FETCH, "304 to an unconditional request"
                    )
                seen, cached = known
                _check_digest(seen.sha256, sha256)
                await self._urls.put(url, Seen(seen.sha256, seen.etag, time.time()))
                return replace(cached, timings_ms=timings)
            telemetry.FETCHES.labels("fetched").inc()
            digest = _checked_digest(fetched.body, sha256)
            await self._urls.put(url, Seen(digest, fetched.etag, time.time()))
            outcome = await self._embed_once(fetched.body, self._key(digest, asked.plan), asked)
            return replace(outcome, timings_ms=timings | outcome.timings_ms)

    async def _embed_once(self, body: bytes, key: EmbeddingKey, asked: _Asked) -> Outcome:
        flight = key, asked.lists.digest
        return shared(*await self._in_work.join(flight, lambda: self._embed(body, key, asked)))

    async def _embed(self, body: bytes, key: EmbeddingKey, asked: _Asked) -> Outcome:
        if cached := await self._cached(key, asked.lists):
            return cached
        timings: dict[str, float] = {}
        with _timed(Stage.DECODE, timings):
            decoded = await self._decoder.decode(
                body, key.sha256, self._model.preprocess, asked.plan
            )
        if listed := asked.lists.match(decoded.facts.perceptual_hash, decoded.facts.frames):
            return Recognised(listed, decoded.facts, "none", timings)
        with _timed(Stage.EMBED, timings):
            rows = await self._encoder.encode(decoded.pixels, priority=asked.priority)
        embedding = Embedding(key, _as_kept(rows), decoded.facts)
        with _timed(Stage.PUBLISH, timings):
            await self._publish_and_cache(embedding)
        return Examined(embedding, "none", timings)

    async def _publish_and_cache(self, embedding: Embedding) -> None:
        try:
            await self._keep(embedding)
        except TooLarge as error:
            telemetry.EMBEDDINGS_TOO_LARGE.inc()
            _log.warning("embedding_not_kept", sha256=embedding.key.sha256, error=str(error))
        else:
            await self._embeddings.put(embedding)

    async def _cached(self, key: EmbeddingKey, lists: Lists) -> Outcome | None:
        hit = await self._embeddings.get(key)
        if hit and lists and hit[0].facts.unhashed:
            hit = None  # of a worker that makes no hashes: whether it is listed is yet to be seen
        telemetry.CACHE_ANSWERS.labels("embedding", hit[1] if hit else "none").inc()
        if hit is None:
            return None
        embedding, tier = hit
        facts = embedding.facts
        if listed := lists.match(facts.perceptual_hash, facts.frames):
            return Recognised(listed, facts, tier)
        return Examined(embedding, tier)

    def _low_slot(self, priority: int) -> AbstractAsyncContextManager[None]:
        # Taken before the host's place: what waits for it would else hold those of a shared host
        return self._low_slots.hold(priority) if priority > 0 else nullcontext()

    def _key(self, sha256: str, plan: FramePlan) -> EmbeddingKey:
        return EmbeddingKey(sha256, self._model.digest, plan.digest)


def _as_kept(rows: Float32Rows) -> Float16Rows:
    """float16 keeps what a cosine needs, in half the memory.

    Raises ``Unexaminable`` for what no cache would believe.
    """
    with np.errstate(over="ignore"):  # to infinity, and so found below
        kept = rows.astype(np.float16)
    if not np.isfinite(kept).all():
        raise Unexaminable(
            ErrorCode.EMBEDDING_NOT_FINITE,
            Stage.EMBED,
            "the model gave numbers that are not finite for this image",
        )
    if not are_unit(kept):
        raise Unexaminable(
            ErrorCode.EMBED_FAILED,
            Stage.EMBED,
            "the model gave an embedding for this image whose length is not one",
        )
    return kept


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
        with tracing.stage(stage.value):
            yield
    finally:
        elapsed = time.perf_counter() - started
        timings[stage.value] = round(elapsed * 1000, 3)
        if worked := _WORKED.get(stage):
            worked.observe(elapsed)
