"""What a live worker says of itself, held against what Prometheus takes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.scene import (
    RED_AND_GREEN,
    Ledger,
    answers_to,
    eventually,
    fake_worker,
    gallery,
    metric,
    request,
    requests_of,
    terminated,
    write_policy,
)
from tests.e2e.test_processes import REQUESTS, both_ready, fleet
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, Worker

STAGES = {"requests_live", "requests_retries", "images", "images_low", "fetch", "decode", "embed"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not on the PATH: on Debian, apt-get install prometheus",
)


def problems(metrics: str) -> str:
    """What ``promtool check metrics`` has to say; nothing where it is content."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True, timeout=60
    )
    return checked.stdout + checked.stderr or ("" if checked.returncode == 0 else "refused")


def told(worker: Worker, name: str, label: str) -> set[str]:
    """The values that a label of a metric has."""
    return {
        sample.labels[label]
        for family in text_string_to_metric_families(worker.metrics())
        for sample in family.samples
        if sample.name == name
    }


@contextmanager
def busy_worker(on: Stage) -> Iterator[Worker]:
    """One with a tenant, a category on trial and a calibration to tell of."""
    first, second = RED_AND_GREEN
    write_policy(
        on.policy, first, {**second, "mode": "shadow"}, tenants={"shop": {"red": {"block": 0.8}}}
    )
    with fake_worker(on) as worker:
        yield worker


async def ask_of_everything(on: Stage) -> None:
    """Requests that are allowed, blocked, undetermined, and none at all."""
    on.images.replies |= gallery(3)
    on.images.replies["/gone.jpg"] = Reply(b"", status=HTTPStatus.NOT_FOUND)
    on.images.replies["/page.jpg"] = Reply(b"<!doctype html><p>gone")
    requests = requests_of(on, on.images.replies)
    requests["wall"] = request("wall", "http://10.0.0.1/a.jpg", tenant="stranger")
    requests["named"] = request("named", on.images.url("/0.jpg"), tenant="shop")
    async with Exchange(on) as exchange:
        await answers_to(exchange, {**requests, "junk": b"{"})


@needs_promtool
async def test_metrics_of_a_worker_keep_to_the_rules(on: Stage) -> None:
    with busy_worker(on) as worker:
        await ask_of_everything(on)
        assert problems(worker.metrics()) == ""


async def test_worker_tells_what_became_of_its_requests_and_how_full_it_is(on: Stage) -> None:
    with busy_worker(on) as worker:
        await ask_of_everything(on)
        for expected, name, labels in [
            (1, "fetches_total", {"outcome": "http_client_error"}),
            (1, "addresses_refused_total", {"reason": "private"}),
            (3, "decodes_total", {"format": "jpeg", "outcome": "decoded"}),
            (1, "decodes_total", {"format": "other", "outcome": "not_an_image"}),
            (1, "tenant_verdicts_total", {"tenant": "shop"}),
            (1, "dead_letters_total", {"reason": "not_json"}),
        ]:
            assert metric(worker, f"imagewarden_{name}", **labels) == expected
        for name in ("busy_places", "places", "waiting_images"):
            assert told(worker, f"imagewarden_stage_{name}", "stage") == STAGES
        assert told(worker, "imagewarden_tenant_verdicts_total", "tenant") == {
            *("shop", "none", "other")
        }
        # none of them is a stranger's to choose
        assert "stranger" not in worker.metrics()
        assert "gone.jpg" not in worker.metrics()


@needs_promtool
async def test_metrics_of_several_processes_keep_to_the_rules_and_add_up(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS)
    requests = requests_of(on, on.images.replies)
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with fleet(on) as processes:
            await eventually(lambda: both_ready(processes), "both are ready")
            await exchange.publish(requests)
            await ledger.fill(exchange)
            for name in (
                "category_probability_count",
                "end_to_end_seconds_count",
                "tenant_verdicts_total",
                "fetches_total",
                "decodes_total",
            ):
                expected = REQUESTS * (2 if name.startswith("category") else 1)
                await eventually(
                    lambda: metric(processes, f"imagewarden_{name}") == expected,  # noqa: B023
                    f"{name} adds up",
                )
            one = metric(processes, "imagewarden_stage_places", stage="images", process="0")
            assert metric(processes, "imagewarden_stage_places", stage="images") == 2 * one > 0
            for name in ("imagewarden_oldest_in_flight_seconds", "process_open_fds"):
                assert told(processes, name, "process") == {"0", "1"}
            assert problems(processes.metrics()) == ""
            assert await terminated(processes) == 0
