"""Stand-ins for the network and the decoder: pictures are colours, spelt out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from tests.fakes import COLOURS
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.types import Decoded, Fetched, FramePlan, ImageFacts, NotModified, PreprocessSpec


class FakeFetcher:
    """``seams.Fetcher`` over a dictionary: a URL serves a body, a body with an ETag, or raises.

    A URL in ``gates`` serves nothing until its gate is set. ``asked`` holds each URL with the ETag
    it was asked with, ``worth_retrying`` what it was told last; ``most_active`` is the most
    downloads there were at once.
    """

    def __init__(self) -> None:
        self.serves: dict[str, Fetched | Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.worth_retrying: dict[str, Callable[[], bool]] = {}
        self.active = 0
        self.most_active = 0

    def hold(self, url: str) -> asyncio.Event:
        """Set the event that it gives to let the download go on."""
        return self.gates.setdefault(url, asyncio.Event())

    async def fetch(
        self,
        url: str,
        *,
        etag: str | None = None,
        worth_retrying: Callable[[], bool] = lambda: True,
    ) -> Fetched | NotModified:
        self.asked.append((url, etag))
        self.worth_retrying[url] = worth_retrying
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            if url in self.gates:
                await self.gates[url].wait()
            await asyncio.sleep(0)
        finally:
            self.active -= 1
        served = self.serves[url]
        if isinstance(served, Exception):
            raise served
        return NotModified() if etag is not None and etag == served.etag else served

    async def close(self) -> None: ...


class FakeDecoder:
    """``seams.Decoder`` of bodies like ``b"red blue"``: two frames, one of each colour.

    ``hashes`` has the perceptual hashes of those bodies that have any, while it is ``hashing``.
    """

    def __init__(self) -> None:
        self.decoded: list[bytes] = []
        self.hashes: dict[bytes, str] = {}
        self.hashing = True

    async def decode(
        self, body: bytes, sha256: str, spec: PreprocessSpec, plan: FramePlan
    ) -> Decoded:
        self.decoded.append(body)
        await asyncio.sleep(0)
        colours = [COLOURS.get(word) for word in body.decode().split()]
        if None in colours:
            raise Unexaminable(ErrorCode.UNDECODABLE, Stage.DECODE, "no such colour")
        pixels = np.empty((len(colours), *spec.size, 3), dtype=np.uint8)
        pixels[:] = np.array(colours, dtype=np.uint8)[:, None, None, :]
        frames = len(colours)
        hash_ = self.hashes.get(body) if self.hashing else None
        facts = ImageFacts(
            sha256,
            hash_,
            "image/fake",
            8,
            8,
            len(body),
            frames,
            tuple(range(frames)),
            too_plain=self.hashing and hash_ is None,
        )
        return Decoded(pixels, facts)

    async def close(self) -> None: ...


def not_found() -> Unexaminable:
    return Unexaminable(ErrorCode.HTTP_CLIENT_ERROR, Stage.FETCH, "404 Not Found")
