"""Redis behind TLS with an authority of its own, and a password."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import structlog

from tests.certificates import Authority
from worker.stores import RedisStore

PASSWORD = "hunter2/hunter2"
ESCAPED = "hunter2%2Fhunter2"


@pytest.fixture
def user(redis_url: str) -> str:
    """A user that may do everything, with ``PASSWORD``."""
    name = f"user-{uuid.uuid4().hex}"
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser(
            name, enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], categories=["+@all"]
        )
    return name


@asynccontextmanager
async def tls_before(redis_url: str, certificate: Path) -> AsyncIterator[str]:
    """``host:port`` of what ends TLS and hands on to Redis, which has none of its own here."""
    host, port = redis_url.removeprefix("redis://").removesuffix("/0").split(":")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def handed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(copied(reader, redis_writer), copied(redis_reader, writer))
        except OSError:  # the client hung up
            pass
        finally:
            redis_writer.close()
            writer.close()

    server = await asyncio.start_server(handed_on, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def kept(url: str) -> tuple[bytes | None, list[dict[str, object]]]:
    """What a store gives of a value that was put into it, and what it logged."""
    with structlog.testing.capture_logs() as logs:
        store = RedisStore(url, timeout_seconds=5.0)
        try:
            await store.put([("key", b"value", 60.0)])
            [value] = await store.get(["key"])
            await store.get(["key"])  # it tells of an outage after two failures
        finally:
            await store.close()
    return value, [dict(line) for line in logs]


async def test_redis_behind_tls_is_reached_with_the_authority_and_password_in_the_url(
    redis_url: str, user: str, tmp_path: Path
) -> None:
    ours = Authority(tmp_path, "ours")
    async with tls_before(redis_url, ours.signed("redis")) as address:
        url = f"rediss://{user}:{ESCAPED}@{address}/0?ssl_ca_certs={ours.certificate}"
        assert await kept(url) == (b"value", [])


@pytest.mark.parametrize(
    ("alternative", "authority"), [("IP:127.0.0.1", "other"), ("DNS:elsewhere.example", "ours")]
)
async def test_redis_with_a_certificate_of_another_authority_or_host_is_refused(
    redis_url: str, user: str, tmp_path: Path, alternative: str, authority: str
) -> None:
    ours = Authority(tmp_path, "ours")
    trusted = ours if authority == "ours" else Authority(tmp_path, authority)
    certificate = ours.signed("redis", alternative=alternative)
    async with tls_before(redis_url, certificate) as address:
        url = f"rediss://{user}:{ESCAPED}@{address}/0?ssl_ca_certs={trusted.certificate}"
        value, logs = await kept(url)
    assert value is None
    assert "CERTIFICATE_VERIFY_FAILED" in str(logs)
    assert "hunter2" not in str(logs)


async def test_a_wrong_password_of_redis_is_told_of_and_not_shown(
    redis_url: str, user: str
) -> None:
    url = redis_url.replace("redis://", f"redis://{user}:{ESCAPED}-wrong@")
    value, logs = await kept(url)
    assert value is None
    assert "invalid username-password pair" in str(logs)
    assert "hunter2" not in str(logs)


async def test_a_redis_that_does_not_know_passwords_is_not_quoted() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(f"-ERR unknown command `AUTH`, with args: `{PASSWORD}`\r\n".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        value, logs = await kept(f"redis://:{ESCAPED}@127.0.0.1:{port}")
    assert value is None
    assert "unknown command `AUTH`" in str(logs)
    assert "hunter2" not in str(logs)
