"""The HTTP endpoints: ``/metrics``, ``/livez`` and ``/readyz``."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from worker.errors import Misconfigured
from worker.telemetry import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


_LOCAL = "unix:"


@dataclass(frozen=True)
class Health:
    """Answers of a probe: well or not, and a sentence why."""

    well: bool
    reason: str


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; their lines would drown the requests'."""


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _LocalServer(_ThreadingServer):
    """On a socket in the file system, which has neither host nor port."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("localhost", 0)


def open_endpoints(
    host: str,
    port: int,
    *,
    live: Callable[[], Health],
    ready: Callable[[], Health],
    registry: CollectorRegistry = REGISTRY,
) -> Endpoints:
    """Raises ``Misconfigured`` where the address cannot be listened on."""
    try:
        return Endpoints(host, port, live=live, ready=ready, registry=registry)
    except OSError as error:
        raise Misconfigured(
            f"cannot serve metrics on {host}:{port} ({error.strerror}); set "
            "IMAGEWARDEN_HTTP__HOST and IMAGEWARDEN_HTTP__PORT to a free address (port 0 takes one)"
        ) from None


class Endpoints:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` from a thread of its own, so that they answer
    while the event loop is busy, and can say so when it is stuck.

    ``port`` 0 takes a free one; ``address`` says which. ``host`` may be ``unix:`` and a path, for
    a socket in the file system. Probes answer 200 or 503, and a sentence.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: Callable[[], Health],
        ready: Callable[[], Health],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        metrics = make_wsgi_app(registry)
        probes = {"/livez": live, "/readyz": ready}

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                rendered: Iterable[bytes] = metrics(environ, start_response)
                return rendered
            if (probe := probes.get(path)) is None:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"try /metrics, /livez or /readyz\n"]
            health = probe()
            status = "200 OK" if health.well else "503 Service Unavailable"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [health.reason.encode() + b"\n"]

        if host.startswith(_LOCAL):
            self._server: WSGIServer = _LocalServer(host.removeprefix(_LOCAL), _QuietHandler)  # type: ignore[arg-type]
            self._server.set_app(app)
        else:
            self._server = make_server(
                host, port, app, server_class=_ThreadingServer, handler_class=_QuietHandler
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="endpoints", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        if isinstance(self._server, _LocalServer):
            return f"{_LOCAL}{self._server.server_address!s}"
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
