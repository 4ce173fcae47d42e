"""Spans as OpenTelemetry makes and sends them; imported only where it is configured."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker import __version__
from worker.errors import Unexaminable
from worker.types import Headers, Record

_LAST_SPANS_SECONDS = 3.0

_W3C = TraceContextTextMapPropagator()

# It quotes whatever a request's headers have in place of a trace's state
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)


@contextmanager
def exporting(worker: str) -> Iterator[OtelSpans]:
    """Spans that are sent by OTLP over HTTP, in batches, from a thread of their own; the last ones
    when it closes. Endpoint, headers, sampler and limits are OpenTelemetry's environment
    variables."""
    named = {SERVICE_INSTANCE_ID: worker, SERVICE_VERSION: __version__}
    if "OTEL_SERVICE_NAME" not in os.environ:
        named[SERVICE_NAME] = "imagewarden"
    provider = TracerProvider(resource=Resource.create(named))
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OtelSpans(provider)
    finally:
        # A collector that is away would be tried for 20 s
        enough = threading.Timer(_LAST_SPANS_SECONDS, exporter.shutdown)
        enough.start()
        provider.shutdown()
        enough.cancel()


class OtelSpans:
    """Names and attributes follow the semantic conventions for messaging. No URL is in any of them,
    and no message of an error: what went wrong is told by its code."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("imagewarden", __version__)
        self._request: ContextVar[Span] = ContextVar("request")

    @contextmanager
    def request(self, record: Record) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            f"process {record.topic}",
            context=_W3C.extract(record.headers, getter=_HEADERS),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
            },
            record_exception=False,
            set_status_on_exception=False,  # which tells its message
        ) as span:
            token = self._request.set(span)
            try:
                yield
            except Exception as failed:
                span.set_attribute("error.type", type(failed).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise
            finally:
                self._request.reset(token)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Unexaminable as failed:
                span.set_attribute("error.type", failed.code.value)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def note(self, attributes: Mapping[str, str]) -> None:
        span = self._request.get(None)
        if span is not None:
            for name, value in attributes.items():
                span.set_attribute(f"imagewarden.{name}", value)

    def context(self) -> Headers:
        if not get_current_span().get_span_context().is_valid:
            return ()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return tuple((name, value.encode()) for name, value in carrier.items())


class _RecordHeaders(Getter[Headers]):
    """What is no text is as good as absent."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        found = [value for name, value in carrier if name == key and value is not None]
        return [value.decode("ascii", "replace") for value in found] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, _ in carrier]


_HEADERS = _RecordHeaders()
