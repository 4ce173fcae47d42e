"""Spans of a worker that exports them, as a collector receives them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.scene import (
    PATIENCE_SECONDS,
    all_records,
    eventually,
    fake_worker,
    picture,
    request,
)
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage
from worker.publish import KafkaPublisher
from worker.types import Message, Record

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = (("traceparent", f"00-{TRACE}-{PARENT}-01".encode()), ("tracestate", b"shop=1"))
SECRET = "planted-8f31"


@dataclass
class Collector:
    port: int = 0
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[Span]:
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One that workers started from here export to."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{found.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(PATIENCE_SECONDS)


def told(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


async def ask(on: Stage, name: str, url: str) -> None:
    publisher = KafkaPublisher(bootstrap=on.broker, client_id="tests")
    await publisher.start()
    topic = on.topics.requests_topic
    await publisher.publish(Message(topic, name.encode(), request(name, url), CONTEXT))
    await publisher.close()


async def verdict_record(on: Stage) -> Record:
    [record] = await all_records(on, on.topics.verdicts_topic)
    return record


async def test_a_request_s_trace_goes_on_through_every_stage_to_its_verdict(
    on: Stage, collector: Collector
) -> None:
    on.images.replies["/red.jpg"] = Reply(picture("red"))
    async with Exchange(on) as exchange:
        with fake_worker(on):
            await ask(on, "one", on.images.url(f"/red.jpg?token={SECRET}"))
            await exchange.answer()
            await eventually(lambda: len(collector.spans()) >= 5, "the spans are exported")
    verdict = await verdict_record(on)
    spans = {span.name: span for span in collector.spans()}
    whole = spans.pop(f"process {on.topics.requests_topic}")
    assert spans.keys() == {"fetch", "decode", "embed", "publish"}
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert whole.kind == Span.SPAN_KIND_CONSUMER
    assert told(whole)["imagewarden.request_id"] == "one"
    assert told(whole)["imagewarden.action"] == "block"
    for stage in spans.values():
        assert (stage.trace_id, stage.parent_span_id) == (whole.trace_id, whole.span_id)
        assert whole.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= whole.end_time_unix_nano
    headers = dict(verdict.headers)
    assert headers["traceparent"] == f"00-{TRACE}-{whole.span_id.hex()}-01".encode()
    assert headers["tracestate"] == b"shop=1"
    assert not any(SECRET.encode() in body for body in collector.bodies)


async def test_what_failed_is_told_by_its_code_alone(on: Stage, collector: Collector) -> None:
    async with Exchange(on) as exchange:
        with fake_worker(on, RETRY__ATTEMPTS="0"):
            await ask(on, "gone", on.images.url(f"/none.jpg?token={SECRET}"))
            await exchange.answer()
            await eventually(lambda: len(collector.spans()) >= 2, "the spans are exported")
    spans = {span.name: span for span in collector.spans()}
    whole = spans.pop(f"process {on.topics.requests_topic}")
    [fetch] = spans.values()
    assert told(fetch)["error.type"] == told(whole)["imagewarden.error"] == "http_client_error"
    assert not fetch.status.message
    assert not any(SECRET.encode() in body for body in collector.bodies)


async def test_a_collector_that_is_away_holds_nobody_up(
    on: Stage, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    on.images.replies["/red.jpg"] = Reply(picture("red"))
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            await ask(on, "one", on.images.url("/red.jpg"))
            await exchange.answer()
            assert worker.stop() == 0


async def test_without_a_collector_the_verdict_carries_the_request_s_context(on: Stage) -> None:
    on.images.replies["/red.jpg"] = Reply(picture("red"))
    async with Exchange(on) as exchange:
        with fake_worker(on):
            await ask(on, "one", on.images.url("/red.jpg"))
            await exchange.answer()
    assert (await verdict_record(on)).headers == CONTEXT
