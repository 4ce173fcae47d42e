"""Every expression of every panel and alert, asked of a real Prometheus that watches a live worker.

The worker is given good and bad images until each has given data.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import prometheus_server, watching
from tests.e2e.scene import (
    PATIENCE_SECONDS,
    closed_port,
    eventually,
    fake_worker,
    gallery,
    picture,
    request,
    requests_of,
    write_policy,
)
from tests.fakes import FakeEncoder
from tests.policy_factory import category, policy_of
from tests.prometheus_server import Prometheus, scraping
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage, worker_process
from worker.perceptual import perceptual_hash
from worker.policy import margin_digest
from worker.publish import KafkaPublisher
from worker.types import Message

pytestmark = pytest.mark.skipif(
    prometheus_server.unavailable() is not None, reason=str(prometheus_server.unavailable())
)

FEEDBACK = (sys.executable, "-m", "worker", "feedback")

#: What the dashboards' variables stand for here; the lengths fit a server that began just now.
VARIABLES = {
    "job": "imagewarden",
    "instance": ".*",
    "policy": ".*",
    "category": ".*",
    "window": "5s",
    "past": "1s",
    "__rate_interval": "20s",
    "__range": "1m",
}

FULL = "How full is each stage?"

#: Panels that have nothing to show here, and why.
SILENT = {"pipeline › How full is the device's memory?": "there is no GPU"}

_RED = category("red", contrast=["green", "blue"], block=0.9, block_uncalibrated=True)
_GREEN = category("green", prompts=["green"], contrast=["red", "blue"])
_TRIAL = category("blue", prompts=["blue"], contrast=["red", "green"], mode="shadow")
_LIMITS = {"max_block_rate": {"per": "10m", "share": 0.5, "min_requests": 20}}
_LISTS = [{"id": "known", "file": "known.txt", "action": "block"}]


def asked(expression: str) -> str:
    """The expression with its variables replaced, as Grafana does it."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: VARIABLES[found[1]], expression)


def answering(expression: str) -> str:
    """An alert's expression in a form that answers 0 or 1 where it would be silent."""
    compared = re.sub(
        r"\{[^}]*\}|(?:==|!=|<=|>=|<|>)",
        lambda found: found[0] if found[0].startswith("{") else f"{found[0]} bool",
        expression.replace("offset 1w", "offset 1s"),
    )
    return compared.replace("absent(", "count(")


def questions() -> Iterator[tuple[str, str]]:
    for asker, expression in ((each.asker, each.expression) for each in watching.questions()):
        yield asker, asked(expression) if " › " in asker else answering(expression)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in prometheus.query(expression))


# ---------------------------------------------------------------- what the worker is given


def calibrated() -> dict[str, object]:
    """The green category, with a calibration that fits it."""
    policy = policy_of(_GREEN)
    [green] = policy.categories
    fitted_for = margin_digest(policy, green, FakeEncoder().info)
    calibration = {"method": "platt", "for": fitted_for, "scale": 1.0, "bias": 0.0}
    return {**_GREEN, "calibration": {**calibration, "date": "2026-01-31"}}


def listed_picture() -> Image.Image:
    grid = np.random.default_rng(1).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((640, 480), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_policies(folder: Path, version: int = 1) -> str:
    """A strict one and one that lets pass what nobody examined; the setting that names both."""
    (folder / "known.txt").write_text(f"{perceptual_hash(listed_picture())}\n")
    write_policy(
        folder / "strict.yaml",
        *(_RED, calibrated(), _TRIAL),
        id="strict",
        version=version,
        limits=_LIMITS,
        lists=_LISTS,
        tenants={"shop": {"red": {"block": 0.8}}},
    )
    write_policy(folder / "lax.yaml", _RED, id="lax", on_error="allow")
    return f"{folder / 'strict.yaml'},{folder / 'lax.yaml'}"


def wave(on: Stage, number: int) -> dict[str, bytes]:
    """Requests of every kind, some of them seen before."""
    photo = picture("red", str(number))
    on.images.replies |= {
        **gallery(6),
        **{
            f"/{number}/{colour}.jpg": Reply(picture(colour, str(number)))
            for colour in ("red", "green", "blue")
        },
        "/listed.png": Reply(png(listed_picture())),
        f"/{number}/half.jpg": Reply(photo[: len(photo) // 2]),
        f"/{number}/slow.jpg": Reply(photo, delay_seconds=2.0),
        f"/{number}/away.jpg": Reply(status=HTTPStatus.SERVICE_UNAVAILABLE),
    }
    urls = {
        path: on.images.url(path)
        for path in on.images.replies
        if path.startswith(f"/{number}/") or path.count("/") == 1
    }
    urls["/inward"] = "http://169.254.169.254/latest/meta-data/"
    urls["/nowhere"] = on.images.url("/nowhere.jpg")
    requests = {f"{number}:{path}": request(f"{number}:{path}", url) for path, url in urls.items()}
    flood = {
        name: request(name, on.images.url("/0.jpg"), tenant="shop")  # a red one, again and again
        for name in (f"{number}:flood:{each}" for each in range(25))
    }
    unseen = request(f"{number}:lax", on.images.url("/nowhere.jpg"), policy="lax")
    return requests | flood | {f"{number}:lax": unseen, f"{number}:no request": b"not JSON"}


async def say(on: Stage) -> None:
    """What people say of one image that was blocked and one that was not."""
    publisher = KafkaPublisher(bootstrap=on.broker, client_id="people")
    await publisher.start()
    for item, shows in (("0:/0.jpg", True), ("0:/2.jpg", False)):
        said = {"schema_version": 1, "item_id": item, "category": "red", "shows": shows}
        value = json.dumps(said | {"sampled": 1.0}).encode()
        await publisher.publish(Message(on.topics.feedback_topic, None, value))
    await publisher.close()


# ---------------------------------------------------------------- tests


async def test_every_panel_alert_and_variable_has_data_while_a_worker_works(on: Stage) -> None:
    silent = list(questions())
    with (
        fake_worker(
            on,
            POLICIES=write_policies(on.folder),
            FETCH__READ_TIMEOUT_SECONDS="1",
            FETCH__ATTEMPTS="2",
            HOST__FAILURES="1000000",  # all images come from one host
            RETRY__DELAY_SECONDS="1",
            WORK__MAX_REJECTED_SHARE="1",
        ) as worker,
        worker_process(on, command=FEEDBACK) as feedback,
        scraping(
            {
                "imagewarden": [str(worker.address())],
                "imagewarden-feedback": [str(feedback.address())],
            },
            rule_groups=watching.rule_groups(),
        ) as prometheus,
    ):
        async with Exchange(on) as exchange:
            deadline = time.monotonic() + PATIENCE_SECONDS
            for number in count():
                if number == 1:
                    await say(on)
                    write_policies(on.folder, version=2)
                if number == 3:
                    (on.folder / "strict.yaml").write_text("version: 1\n")
                sent = wave(on, number)
                await exchange.publish(sent)
                for _ in sent:
                    await exchange.answer()
                silent = [
                    (asker, expression)
                    for asker, expression in silent
                    if not await asyncio.to_thread(has_data, prometheus, expression)
                ]
                if {asker for asker, _ in silent} == SILENT.keys() or time.monotonic() > deadline:
                    break
        assert [each for each in silent if each[0] not in SILENT] == []
        assert {asker for asker, _ in silent} == SILENT.keys()
        assert unanswered_variables(prometheus) == []
        assert [rule["lastError"] for rule in prometheus.rules() if rule["health"] != "ok"] == []


async def test_faults_show_on_the_panels_that_the_runbook_names(on: Stage) -> None:
    on.images.replies |= gallery(24, delay_seconds=2.0)
    with (
        fake_worker(
            on,
            REDIS__URL=f"redis://127.0.0.1:{closed_port()}/0",
            HOST__SHARE="1",
            WORK__IMAGES="4",
        ) as worker,
        scraping({"imagewarden": [str(worker.address())]}, every="200ms") as prometheus,
    ):

        def shows(page: str, title: str) -> list[tuple[str, float]]:
            """The panel's series: their stage, where they have one, and value."""
            [panel] = [
                panel
                for panel in watching.panels(watching.dashboards()[page])
                if panel["title"] == title
            ]
            series = prometheus.query(asked(panel["targets"][0]["expr"]))
            return [(each["metric"].get("stage", ""), float(each["value"][1])) for each in series]

        async with Exchange(on) as exchange:
            answering = "How many workers answer?"
            await eventually(lambda: shows("overview", answering) == [("", 1.0)], "it is scraped")
            await exchange.publish(requests_of(on, on.images.replies))
            await eventually(
                lambda: {("images", 1.0), ("fetch", 1.0)} <= {*shows("pipeline", FULL)},
                "slow image servers fill the stages before the decoders",
            )
            await eventually(
                lambda: shows("overview", "Does Redis answer?") == [("", 0.0)], "Redis is away"
            )
            on.policy.write_text("version: 1\n")
            refused = "How many policy edits are refused?"
            await eventually(lambda: shows("overview", refused) == [("", 1.0)], "a typo is refused")
            worker.process.kill()
            await eventually(lambda: shows("overview", answering) == [("", 0.0)], "it is gone")


def unanswered_variables(prometheus: Prometheus) -> list[str]:
    """Queries of the dashboards' variables that offer nothing to choose."""
    queries = {
        variable["query"]["query"]
        for dashboard in watching.dashboards().values()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    assert queries
    parsed = {query: re.fullmatch(r"label_values\((.+), (\w+)\)", query) for query in queries}
    return [
        query
        for query, found in parsed.items()
        if found is None or not prometheus.label_values(found[2], asked(found[1]))
    ]
