"""Spans of each request and of each stage on its way, where somebody collects them.

They are OpenTelemetry's, and go where its own environment variables say. Where none is set nothing
of it is imported, and a span costs 0.1 µs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Protocol

from worker.errors import Misconfigured
from worker.types import Headers, Record

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_NOTHING = nullcontext()


class Spans(Protocol):
    """Each span is a part of whichever one is open in the same task, or where the task began."""

    def request(self, record: Record) -> AbstractContextManager[None]:
        """From the moment it is taken up to its answer's acknowledgement; continues the trace that
        its headers name."""

    def stage(self, name: str) -> AbstractContextManager[None]: ...

    def note(self, attributes: Mapping[str, str]) -> None:
        """Of the request's span, while it is open."""

    def context(self) -> Headers:
        """That of the span that is open, to be carried on."""


#: Those of this process; None where nobody collects them.
_spans: Spans | None = None


def configured() -> bool:
    """Raises ``Misconfigured`` where an endpoint is set and OpenTelemetry is not installed."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if disabled or endpoint is None:
        return False
    if not _installed():
        raise Misconfigured(
            f"{endpoint} is set, and OpenTelemetry is not installed: "
            "pip install 'imagewarden[tracing]', or unset it"
        )
    return True


def _installed() -> bool:
    try:
        return all(map(find_spec, _NEEDED))
    except ModuleNotFoundError:  # of a package that one of them is in
        return False


@contextmanager
def collected(spans: Spans) -> Iterator[None]:
    """While it is open, spans go there."""
    global _spans
    before, _spans = _spans, spans
    try:
        yield
    finally:
        _spans = before


def request(record: Record) -> AbstractContextManager[None]:
    return _NOTHING if _spans is None else _spans.request(record)


def stage(name: str) -> AbstractContextManager[None]:
    return _NOTHING if _spans is None else _spans.stage(name)


def note(**attributes: str | None) -> None:
    """What is None is left out."""
    if _spans is not None:
        _spans.note({name: value for name, value in attributes.items() if value is not None})


def context(record: Record) -> Headers:
    """Of what is said of ``record``: its own trace context, or that of its span."""
    found = () if _spans is None else _spans.context()
    return found or record.trace_context
