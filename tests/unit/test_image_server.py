from __future__ import annotations

import http.client
import threading
from http import HTTPStatus

import httpx
import pytest

from worker.demo.image_server import Reply, serving


def test_reply_is_served_by_its_path_whatever_the_query() -> None:
    with serving({"/a": Reply(b"image")}) as images:
        answers = [httpx.get(images.url(path)) for path in ("/a", "/a?size=large")]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"image")] * 2


def test_unknown_path_is_not_found() -> None:
    with serving({}) as images:
        assert httpx.get(images.url("/a")).status_code == 404


def test_reply_has_its_status_and_headers() -> None:
    moved = Reply(status=HTTPStatus.FOUND, headers={"Location": "http://10.0.0.1/"})
    with serving({"/a": moved}) as images:
        answer = httpx.get(images.url("/a"))
    assert (answer.status_code, answer.headers["location"]) == (302, "http://10.0.0.1/")


def test_unchanged_image_is_not_sent_again() -> None:
    with serving({"/a": Reply(b"one")}) as images:
        etag = httpx.get(images.url("/a")).headers["etag"]
        same = httpx.get(images.url("/a"), headers={"If-None-Match": etag})
        images.replies["/a"] = Reply(b"two")
        changed = httpx.get(images.url("/a"), headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    assert (changed.status_code, changed.content) == (200, b"two")


def test_hits_are_counted_by_path() -> None:
    with serving({"/a": Reply(b"a")}) as images:
        for path in ("/a", "/a?x", "/missing"):
            httpx.get(images.url(path))
    assert images.hits == {"/a": 2, "/missing": 1}


def test_connection_serves_more_than_one_request() -> None:
    with serving({"/a": Reply(b"a"), "/b": Reply(b"bb")}) as images:
        connection = http.client.HTTPConnection("127.0.0.1", images.port, timeout=30)
        bodies = []
        for path in ("/a", "/missing", "/b"):
            connection.request("GET", path)
            socket = connection.sock
            bodies.append(connection.getresponse().read())
            assert connection.sock is socket
        connection.close()
    assert bodies == [b"a", b"nothing here\n", b"bb"]


def test_slow_reply_holds_up_no_other() -> None:
    with serving({"/slow": Reply(b"late", delay_seconds=3600), "/a": Reply(b"a")}) as images:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(images.url("/slow"), timeout=0.05)
        assert httpx.get(images.url("/a")).content == b"a"


def test_server_stops_although_a_client_has_not_hung_up() -> None:
    with httpx.Client() as client:
        with serving({"/a": Reply(b"a")}) as images:
            client.get(images.url("/a"))
        with pytest.raises(httpx.TransportError):
            client.get(images.url("/a"))
    assert not any(thread.name == "image-server" for thread in threading.enumerate())
