"""What the service stands on, one for each test, gone after it even if it failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import KAFKA, write_policy
from worker.demo.stage import Stage, stage


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Stage]:
    """Broker, Redis and an image server with nothing on it; the policy judges by colour."""
    policy = tmp_path / "policy.yaml"
    write_policy(policy)
    with stage({}, policy, broker=KAFKA) as on:
        yield on
