"""A pool of decoder processes for tests, and pictures to give to it."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from worker import imaging
from worker.decode import DecoderPool
from worker.errors import Stage, Unexaminable
from worker.telemetry import REGISTRY
from worker.types import Decoded, FramePlan, PreprocessSpec

SPEC = PreprocessSpec(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAN = FramePlan()
LIMITS = imaging.Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(**{"processes": 1, **options})
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


async def decoded(pool: DecoderPool, body: bytes) -> Decoded:
    return await pool.decode(body, hashlib.sha256(body).hexdigest(), SPEC, PLAN)


async def rejection(pool: DecoderPool, body: bytes) -> Unexaminable:
    with pytest.raises(Unexaminable) as caught:
        await decoded(pool, body)
    assert caught.value.stage is Stage.DECODE
    return caught.value


def photo(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def children() -> list[psutil.Process]:
    """The decoder processes of this one, which may have children of other kinds."""
    return [
        child
        for child in psutil.Process().children()
        if not is_gone(child.pid) and any("decoder_process" in word for word in child.cmdline())
    ]


def kills(cause: str) -> float:
    return REGISTRY.get_sample_value("imagewarden_decoder_kills_total", {"cause": cause}) or 0.0


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody reaps orphans here
    except psutil.NoSuchProcess:
        return True
