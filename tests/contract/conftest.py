"""The embedded servers, one of each kind per test process, stopped whatever happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.embedded import embedded_broker, embedded_redis


@pytest.fixture(scope="session")
def broker_address() -> Iterator[str]:
    """``host:port`` of a Kafka-compatible broker. Use topics and groups of your own."""
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """``redis://`` URL of a Redis-compatible server. Use keys of your own."""
    with embedded_redis() as url:
        yield url
