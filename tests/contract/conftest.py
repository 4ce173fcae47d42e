"""The embedded servers, one of each kind per test process, stopped whatever happens; and Apache
Kafka, where there is one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from worker.embedded import embedded_broker, embedded_redis


@pytest.fixture(scope="session")
def embedded_address() -> Iterator[str]:
    """``host:port`` of a Kafka-compatible broker."""
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session")
def apache_address() -> str:
    """``host:port`` of each broker of Apache Kafka, with commas between."""
    if (address := os.environ.get("KAFKA_BOOTSTRAP")) is None:
        pytest.skip("KAFKA_BOOTSTRAP names no Apache Kafka; make test-kafka starts one")
    return address


@pytest.fixture(params=["embedded", "apache"])
def broker_address(request: pytest.FixtureRequest) -> str:
    """Of a broker. Use topics and groups of your own."""
    return str(request.getfixturevalue(f"{request.param}_address"))


@pytest.fixture
def group() -> str:
    """Nobody else's."""
    return f"group-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """``redis://`` URL of a Redis-compatible server. Use keys of your own."""
    with embedded_redis() as url:
        yield url
