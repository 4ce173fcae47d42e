"""What OpenTelemetry is told, and what it says itself."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from worker.otel import OtelSpans
from worker.types import Headers, Record

SECRET = "planted-8f31"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exported: InMemorySpanExporter) -> OtelSpans:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return OtelSpans(provider)


def record(*headers: tuple[str, bytes]) -> Record:
    return Record("requests", 0, 7, b"k", b"v", headers=headers)


def test_a_bug_is_told_by_its_kind_and_not_by_its_message(
    spans: OtelSpans, exported: InMemorySpanExporter
) -> None:
    with pytest.raises(RuntimeError), spans.request(record()), spans.stage("fetch"):
        raise RuntimeError(f"http://host/a.jpg?token={SECRET}")
    fetch, request = exported.get_finished_spans()
    assert request.status.status_code is StatusCode.ERROR
    assert request.attributes is not None
    assert request.attributes["error.type"] == "RuntimeError"
    assert SECRET not in fetch.to_json() + request.to_json()


@pytest.mark.parametrize(
    "headers",
    [
        (("traceparent", b"\xff"), ("tracestate", f"\n{SECRET}".encode())),
        (("traceparent", PARENT), ("tracestate", f"{SECRET},,=,\n".encode())),
    ],
)
def test_headers_that_are_no_trace_context_harm_nothing_and_are_quoted_nowhere(
    spans: OtelSpans, headers: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    with spans.request(record(*headers)):
        [(name, _), *_] = spans.context()
    assert name == "traceparent"
    assert not caplog.records
