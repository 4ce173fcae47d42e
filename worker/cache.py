"""What was embedded before, and what a URL served a moment ago, in tiers: memory, then Redis.

An embedding is found by all it depends on (content, model with preprocessing, frame plan), so it is
never stale. What a URL serves may change, so it is believed for ``ttl_seconds`` only; past them,
if it came with an ETag, it is kept as something to ask the server about. URLs carry credentials in
their query strings: a keyed hash stands in for them wherever they would be stored or shown.

A cached value is checked before it is believed: what is found in Redis may have been written by
another version, cut short, damaged, or be the answer to another question. A digest in front of each
value finds every such damage. It is no signature: who can write to Redis can write verdicts.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, StringConstraints

from worker import telemetry
from worker.seams import Store
from worker.types import CacheTier, Embedding, EmbeddingKey, Seen

V = TypeVar("V")
Stores = Sequence[tuple[CacheTier, Store]]


class EmbeddingCache:
    """Embeddings of ``dimension`` numbers, each kept for ``ttl_seconds`` after it was put.

    ``parse`` undoes ``encode`` and raises ``ValueError`` for bytes that are not to be believed.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        dimension: int,
        ttl_seconds: float,
        encode: Callable[[Embedding], bytes],
        parse: Callable[[bytes], Embedding],
    ) -> None:
        self._tiers = _Tiers(stores)
        self._dimension = dimension
        self._ttl_seconds = ttl_seconds
        self._encode = encode
        self._parse = parse

    async def get(self, key: EmbeddingKey) -> tuple[Embedding, CacheTier] | None:
        """The embedding, and the tier that had it."""
        return await self._tiers.get(
            _embedding_name(key),
            believe=lambda payload: self._believe(payload, key),
            seconds_left=lambda _: self._ttl_seconds,
        )

    async def put(self, embedding: Embedding) -> None:
        await self._tiers.put(
            _embedding_name(embedding.key), self._encode(embedding), self._ttl_seconds
        )

    def _believe(self, payload: bytes, key: EmbeddingKey) -> Embedding:
        embedding = self._parse(payload)
        rows, facts = embedding.rows, embedding.facts
        if embedding.key != key or facts.sha256 != key.sha256:
            raise ValueError("it is the embedding of something else")
        if not facts.rows or rows.shape != (len(facts.rows), self._dimension):
            raise ValueError(f"{rows.shape} is no shape for {len(facts.rows)} × {self._dimension}")
        if rows.dtype != np.float16 or not are_unit(rows):
            raise ValueError("it is not float16 rows of length one")
        return embedding


def are_unit(rows: NDArray[np.floating]) -> bool:
    """Whether each of ``[rows, dimension]`` is finite and of length one, give or take what float16
    rounds off: up to 2⁻¹¹ of each number, and of subnormal ones up to 2⁻²⁵."""
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
    return bool((abs(lengths - 1) < 2**-10).all())  # NaN and infinity are not


class UrlCache:
    """What URLs served. 0 for ``ttl_seconds`` turns it off.

    ``url_key`` makes the hashes that stand in for URLs; workers that share it share what they saw.
    What came with an ETag is kept for ``revalidate_seconds`` if that is longer. ``clock`` gives
    seconds since the epoch.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        url_key: bytes,
        ttl_seconds: float,
        revalidate_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ``ValueError`` for a key that is short enough to be guessed."""
        if len(url_key) < 16:
            raise ValueError(
                f"url_key has {len(url_key)} bytes, too few to keep URLs secret: "
                "give at least 16 random ones"
            )
        self._tiers = _Tiers(stores)
        self._url_key = url_key
        self._ttl_seconds = ttl_seconds
        self._revalidate_seconds = revalidate_seconds
        self._clock = clock

    def keyed_hash(self, url: str) -> str:
        """HMAC-SHA256 (RFC 2104) of the URL in hex; stands in for it in keys and logs."""
        # JSON can write lone surrogates, which plain UTF-8 refuses
        text = url.encode("utf-8", "surrogatepass")
        return hmac.digest(self._url_key, text, "sha256").hex()

    def fresh(self, seen: Seen) -> bool:
        """Whether to believe it without asking the server again."""
        return self._age_seconds(seen) < self._ttl_seconds

    async def get(self, url: str) -> tuple[Seen, CacheTier] | None:
        """What the URL served, and the tier that knew; if it is not fresh, it has an ETag."""
        keyed_hash = self.keyed_hash(url)
        return await self._tiers.get(
            _url_name(keyed_hash),
            believe=lambda payload: _parse_seen(payload, keyed_hash),
            seconds_left=self._seconds_left,
        )

    async def put(self, url: str, seen: Seen) -> None:
        keyed_hash = self.keyed_hash(url)
        await self._tiers.put(
            _url_name(keyed_hash), _encode_seen(seen, keyed_hash), self._seconds_left(seen)
        )

    def _seconds_left(self, seen: Seen) -> float:
        if self._ttl_seconds <= 0:
            return 0
        keep = self._ttl_seconds
        if seen.etag:
            keep = max(keep, self._revalidate_seconds)
        return keep - self._age_seconds(seen)

    def _age_seconds(self, seen: Seen) -> float:
        # Another machine's clock may be ahead; far ahead is as good a reason to ask as far behind
        return abs(self._clock() - seen.fetched_at)


class _Tiers:
    """Stores in the order they are asked; what a lower one has, those above it get too."""

    def __init__(self, stores: Stores) -> None:
        self._stores = tuple(stores)

    async def get(
        self, name: str, *, believe: Callable[[bytes], V], seconds_left: Callable[[V], float]
    ) -> tuple[V, CacheTier] | None:
        """The first value with time left; one that raises ``ValueError`` is deleted."""
        for depth, (tier, store) in enumerate(self._stores):
            [stored] = await store.get([name])
            if stored is None:
                continue
            try:
                value = believe(_unsealed(stored))
            except ValueError:
                telemetry.CACHE_REJECTED.labels(tier).inc()
                await store.delete([name])
                continue
            if (seconds := seconds_left(value)) > 0:
                for _, above in self._stores[:depth]:
                    await above.put([(name, stored, seconds)])
                return value, tier
        return None

    async def put(self, name: str, payload: bytes, seconds: float) -> None:
        if seconds > 0:
            for _, store in self._stores:
                await store.put([(name, sealed(payload), seconds)])


_SEAL_BYTES = 16


def sealed(payload: bytes) -> bytes:
    """As it is stored: behind its digest (BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(payload, digest_size=_SEAL_BYTES).digest() + payload


def _unsealed(stored: bytes) -> bytes:
    payload = stored[_SEAL_BYTES:]
    if stored != sealed(payload):
        raise ValueError("it is not as it was written")
    return payload


def _embedding_name(key: EmbeddingKey) -> str:
    return f"embedding:{key}"


def _url_name(keyed_hash: str) -> str:
    return f"url:{keyed_hash}"


class _StoredSeen(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str  #: its keyed hash
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    etag: str | None
    fetched_at: FiniteFloat


def _encode_seen(seen: Seen, keyed_hash: str) -> bytes:
    stored = _StoredSeen(
        url=keyed_hash, sha256=seen.sha256, etag=seen.etag, fetched_at=seen.fetched_at
    )
    return stored.model_dump_json().encode()


def _parse_seen(payload: bytes, keyed_hash: str) -> Seen:
    stored = _StoredSeen.model_validate_json(payload)
    if stored.url != keyed_hash:
        raise ValueError("it is about another URL")
    return Seen(stored.sha256, stored.etag, stored.fetched_at)
