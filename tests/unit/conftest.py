from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.rig import DEAD, REQUESTS, RETRIES, VERDICTS, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as parts:
        world = World(tmp_path, parts)
        for topic in (REQUESTS, VERDICTS, DEAD, RETRIES):
            world.broker.create(topic)
        yield world
