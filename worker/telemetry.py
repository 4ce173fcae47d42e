"""Every metric, the log set-up, and the HTTP endpoints ``/metrics``, ``/livez``, ``/readyz``.

Names follow the Prometheus rules: base units (seconds, bytes), counters end in ``_total``. Every
label's values come from a closed set or from the policy files; nothing a producer writes becomes a
label.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

REGISTRY = CollectorRegistry(auto_describe=True)

# Buckets carry their range: from a cached decision (1 ms) to a slow download with retries (60 s).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "imagewarden_requests",
    "Records read, by lane (live, retries, backfill).",
    ["lane"],
    registry=REGISTRY,
)
VERDICTS = Counter(
    "imagewarden_verdicts",
    "Verdicts acknowledged by the broker, by decision and by the action it came to.",
    ["policy", "decision", "action"],
    registry=REGISTRY,
)
DEAD_LETTERS = Counter(
    "imagewarden_dead_letters",
    "Dead letters acknowledged by the broker, by reason.",
    ["reason"],
    registry=REGISTRY,
)
RETRIES = Counter(
    "imagewarden_retries",
    "Requests put on the topic of retries, acknowledged by the broker.",
    registry=REGISTRY,
)
TRANSACTIONS_ABORTED = Counter(
    "imagewarden_transactions_aborted",
    "Transactions that were given up, and whose work was tried again (exactly_once).",
    registry=REGISTRY,
)
ERRORS = Counter(
    "imagewarden_errors",
    "Requests that could not be examined, by stage and error code.",
    ["stage", "code"],
    registry=REGISTRY,
)
FAIL_OPEN = Counter(
    "imagewarden_fail_open",
    "Verdicts that allow an image nobody examined, because the policy's on_error says so.",
    ["policy"],
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "imagewarden_stage_duration_seconds",
    "Time one image (one batch, for embed) spent in a stage, waiting for its slot included.",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "imagewarden_request_duration_seconds",
    "Time from a record's poll to its verdict or dead letter acknowledged.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_ROWS = Histogram(
    "imagewarden_batch_rows",
    "Rows of pixels in a batch that went through the model.",
    buckets=_BATCH,
    registry=REGISTRY,
)
BATCH_MAX_ROWS = Gauge(
    "imagewarden_batch_max_rows",
    "Most rows that go through the model at once since its device ran out of memory; 0 before.",
    registry=REGISTRY,
)
BATCHES_SPLIT = Counter(
    "imagewarden_batches_split",
    "Batches tried again in halves, by cause: oom (no memory on the device), failed (an error).",
    ["cause"],
    registry=REGISTRY,
)
EMBEDDINGS_TOO_LARGE = Counter(
    "imagewarden_embeddings_too_large",
    "Embeddings larger than their topic takes: neither published nor cached.",
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "imagewarden_in_flight_requests",
    "Records polled and not yet answered, by lane (live, retries, backfill).",
    ["lane"],
    registry=REGISTRY,
)
CACHE_ANSWERS = Counter(
    "imagewarden_cache_answers",
    "Look-ups by what was looked up (url, embedding) and the tier that answered; none is a miss.",
    ["kind", "tier"],
    registry=REGISTRY,
)
CACHE_ERRORS = Counter(
    "imagewarden_cache_errors",
    "Operations that a cache tier failed; each counted as a miss.",
    ["tier", "operation"],
    registry=REGISTRY,
)
CACHE_REJECTED = Counter(
    "imagewarden_cache_rejected",
    "Cached values that were not believed (damaged, another's, or no unit vectors of numbers).",
    ["tier"],
    registry=REGISTRY,
)
CACHE_UP = Gauge(
    "imagewarden_cache_up",
    "1 while the cache tier answers, 0 while it does not.",
    ["tier"],
    registry=REGISTRY,
)
FETCH_ATTEMPTS = Counter(
    "imagewarden_fetch_attempts", "Tries to download, retries included.", registry=REGISTRY
)
FETCHED_BYTES = Counter(
    "imagewarden_fetched_bytes", "Bytes of bodies downloaded.", registry=REGISTRY
)
HOST_BREAKER_OPENED = Counter(
    "imagewarden_host_breaker_opened",
    "Times that an image host was found not to answer, and was left alone for a while.",
    registry=REGISTRY,
)
HOST_BREAKERS_OPEN = Gauge(
    "imagewarden_host_breakers_open",
    "Image hosts that are left alone now because they did not answer.",
    registry=REGISTRY,
)
DECODER_KILLS = Counter(
    "imagewarden_decoder_kills",
    "Decoder processes that hung, ran out of memory or crashed, and were replaced.",
    ["cause"],
    registry=REGISTRY,
)
CONSUMER_LAG = Gauge(
    "imagewarden_consumer_lag_records",
    "Records between the last one read and the end of each assigned partition.",
    ["topic", "partition"],
    registry=REGISTRY,
)
REBALANCES = Counter(
    "imagewarden_rebalances",
    "Changes of the partitions this worker reads, by kind (assigned, revoked, lost).",
    ["kind"],
    registry=REGISTRY,
)
POLICY_RELOADS = Counter(
    "imagewarden_policy_reloads",
    "Edits of a policy file seen while running, by outcome (applied, refused).",
    ["policy", "outcome"],
    registry=REGISTRY,
)
POLICY_STALE = Gauge(
    "imagewarden_policy_stale",
    "1 while the policy file on disk is refused and the last good one is used instead.",
    ["policy"],
    registry=REGISTRY,
)
POLICY_INFO = Gauge(
    "imagewarden_policy_info",
    "1 for the version of each policy that decides now.",
    ["policy", "version", "digest"],
    registry=REGISTRY,
)
MODEL_INFO = Info("imagewarden_model", "The model that embeds.", registry=REGISTRY)
BUILD_INFO = Info("imagewarden_build", "The version that runs.", registry=REGISTRY)
READY = Gauge(
    "imagewarden_ready", "1 once a canary image went through the model.", registry=REGISTRY
)


# ---------------------------------------------------------------- endpoints


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


class Endpoints:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` from a thread of its own, so that they answer
    while the event loop is busy, and can say so when it is stuck.

    ``port`` 0 takes a free one; ``address`` says which. Probes answer 200 or 503, and a sentence.
    """

    def __init__(
        self, host: str, port: int, *, live: Callable[[], Health], ready: Callable[[], Health]
    ) -> None:
        metrics = make_wsgi_app(REGISTRY)
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

        self._server = make_server(
            host, port, app, server_class=_ThreadingServer, handler_class=_QuietHandler
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="endpoints", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
