from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from worker import telemetry
from worker.endpoints import Endpoints, Health

WELL = Health(True, "all is well")


@contextmanager
def serving(
    *, live: Callable[[], Health] = lambda: WELL, ready: Callable[[], Health] = lambda: WELL
) -> Iterator[str]:
    endpoints = Endpoints("127.0.0.1", 0, live=live, ready=ready)
    try:
        yield f"http://{endpoints.address}"
    finally:
        endpoints.close()


def families() -> list[Metric]:
    return list(telemetry.REGISTRY.collect())


# ---------------------------------------------------------------- endpoints


def test_metrics_are_served_in_the_format_that_prometheus_reads() -> None:
    telemetry.FETCH_ATTEMPTS.inc()
    counted = telemetry.REGISTRY.get_sample_value("imagewarden_fetch_attempts_total")
    with serving() as address:
        answer = httpx.get(f"{address}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    read = {family.name: family for family in text_string_to_metric_families(answer.text)}
    # this format knows no infos: it writes them as gauges
    told = {f"{one.name}_info" if one.type == "info" else one.name for one in families()}
    assert told <= read.keys()
    values = {sample.name: sample.value for sample in read["imagewarden_fetch_attempts"].samples}
    assert values["imagewarden_fetch_attempts_total"] == counted


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probe_that_is_well_answers_200_and_a_sentence(path: str) -> None:
    with serving() as address:
        answer = httpx.get(address + path)
    assert (answer.status_code, answer.text) == (200, "all is well\n")


def test_each_probe_answers_for_itself() -> None:
    with serving(ready=lambda: Health(False, "waiting for the café")) as address:
        ready, live = (httpx.get(f"{address}/{probe}") for probe in ("readyz", "livez"))
    assert (ready.status_code, ready.text) == (503, "waiting for the café\n")
    assert live.status_code == 200


def test_probe_is_asked_at_each_request() -> None:
    answers = iter([Health(False, "not yet"), WELL])
    with serving(ready=lambda: next(answers)) as address:
        codes = [httpx.get(f"{address}/readyz").status_code for _ in range(2)]
    assert codes == [503, 200]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/livez/x", "/favicon.ico"])
def test_any_other_path_is_not_found_and_says_what_there_is(path: str) -> None:
    with serving() as address:
        answer = httpx.get(address + path)
    assert answer.status_code == 404
    assert "/metrics" in answer.text


def test_slow_probe_holds_up_no_other() -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> Health:
        asked.set()
        answer.wait(30)
        return WELL

    with serving(live=slow) as address:
        asking = threading.Thread(target=httpx.get, args=[f"{address}/livez"])
        asking.start()
        assert asked.wait(30)
        try:
            assert httpx.get(f"{address}/readyz").status_code == 200
        finally:
            answer.set()
            asking.join()


def test_port_in_use_is_an_error_at_once() -> None:
    with serving() as address, pytest.raises(OSError):
        port = int(address.rpartition(":")[2])
        Endpoints("127.0.0.1", port, live=lambda: WELL, ready=lambda: WELL)


def test_closing_frees_the_port() -> None:
    with serving() as address:
        pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/livez")


def test_socket_in_the_file_system_is_served_and_named(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    endpoints = Endpoints(f"unix:{path}", 0, live=lambda: WELL, ready=lambda: WELL)
    try:
        assert endpoints.address == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/livez").text == "all is well\n"
    finally:
        endpoints.close()


# ---------------------------------------------------------------- names


def ours() -> list[Metric]:
    """Without prometheus_client's own of the process."""
    return [family for family in families() if not family.name.startswith("process_")]


@pytest.mark.parametrize("family", ours(), ids=lambda family: family.name)
def test_metric_keeps_to_the_naming_rules(family: Metric) -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert re.fullmatch(r"imagewarden(_[a-z0-9]+)+", family.name)
    assert family.documentation.endswith(".")
    # counters get their _total, and infos their _info, when they are written
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_created"))
    not_base = r"_(ms|milliseconds|micros\w*|minutes|hours|kb|mb|kilobytes|megabytes|percent)(_|$)"
    assert not re.search(not_base, family.name)
    if family.type == "histogram":
        assert family.name.endswith(("_seconds", "_bytes", "_rows", "_ratio", "_probability"))
    if family.type == "gauge" and "info" in family.name:
        assert family.name.endswith("_info")


def test_every_metric_is_declared_once_and_in_one_place() -> None:
    names = [family.name for family in families()]
    assert len(names) == len(set(names))
    assert {"imagewarden_requests", "imagewarden_verdicts", "imagewarden_errors"} <= set(names)
