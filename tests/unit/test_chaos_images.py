"""The image server of chaos runs fails in the way it is told to, and serves again after it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.chaos.images import Failing, UnreliableImages
from worker.demo.image_server import Reply


@pytest.fixture
async def images() -> AsyncIterator[UnreliableImages]:
    async with UnreliableImages({"/a.jpg": Reply(b"picture" * 1000)}) as images:
        yield images


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=0.2) as client:
        yield client


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (Failing.REFUSING, httpx.ConnectError),
        (Failing.STALLING, httpx.ReadTimeout),
        (Failing.DROPPING, httpx.RemoteProtocolError),
    ],
)
async def test_fails_as_told_on_old_and_new_connections_and_serves_again(
    images: UnreliableImages, client: httpx.AsyncClient, how: Failing, error: type[Exception]
) -> None:
    url = images.url("/a.jpg")
    assert (await client.get(url)).status_code == 200
    async with images.failing(how):
        with pytest.raises(httpx.TransportError):
            await client.get(url)
        async with httpx.AsyncClient(timeout=0.2) as stranger:
            with pytest.raises(error):
                await stranger.get(url)
    assert (await client.get(url)).content == b"picture" * 1000


async def test_nothing_listens_after_the_end(client: httpx.AsyncClient) -> None:
    async with UnreliableImages({}) as images:
        url = images.url("/")
        async with httpx.AsyncClient() as gone:
            assert (await gone.get(url)).status_code == 404
    with pytest.raises(httpx.ConnectError):
        await client.get(url)
