"""Whether spans are made, and what is carried on where they are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from worker import tracing
from worker.errors import Misconfigured
from worker.types import Headers, Record

OWN = (("traceparent", b"00-1-2-01"),)
RECORD = Record("requests", 0, 7, b"k", b"v", headers=(("cookie", b"x"), *OWN))


class Noted:
    """Spans that are only noted."""

    def __init__(self, carried: Headers = ()) -> None:
        self.open: list[str] = []
        self.notes: dict[str, str] = {}
        self._carried = carried

    @contextmanager
    def request(self, record: Record) -> Iterator[None]:
        with self.stage(record.topic):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.open.append(name)
        yield
        self.open.remove(name)

    def note(self, attributes: Mapping[str, str]) -> None:
        self.notes |= attributes

    def context(self) -> Headers:
        return self._carried


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)


def test_nothing_is_collected_unless_an_endpoint_is_set() -> None:
    assert not tracing.configured()


@pytest.mark.parametrize(
    "name", ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
)
def test_an_endpoint_turns_it_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://collector:4318")
    assert tracing.configured()


def test_what_is_disabled_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.configured()


@pytest.mark.parametrize(
    "absent",
    ["opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.exporter.otlp.proto.http"],
)
def test_what_is_not_installed_is_told_with_how_to_install_it(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{absent}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(Misconfigured, match=r"pip install 'imagewarden\[tracing\]'"):
        tracing.configured()


def test_spans_go_to_who_collects_them_and_to_nobody_after() -> None:
    spans = Noted()
    with tracing.collected(spans), tracing.request(RECORD), tracing.stage("fetch"):
        assert spans.open == ["requests", "fetch"]
        tracing.note(decision="block", tenant=None)
    assert spans.notes == {"decision": "block"}
    with tracing.stage("decode"):
        assert spans.open == []


def test_the_context_of_the_open_span_is_carried_on_else_the_record_s() -> None:
    assert tracing.context(RECORD) == OWN
    with tracing.collected(Noted()):
        assert tracing.context(RECORD) == OWN
    of_span = (("traceparent", b"00-1-3-01"),)
    with tracing.collected(Noted(of_span)):
        assert tracing.context(RECORD) == of_span
