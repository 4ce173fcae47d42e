"""What deploys with Docker, as far as it can be told without Docker."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.apache_kafka import VERSION
from tests.conftest import REPOSITORY
from worker.settings import PREFIX, KafkaSettings, Settings
from worker.settings_load import variables

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PINNED = re.compile(r"[a-z/]+:\d+\.\d+\.\d+(-[a-z0-9]+)*")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(DEPLOY / "compose.yaml")["services"])


def test_there_are_a_broker_with_its_topics_a_redis_and_a_worker(services: dict[str, Any]) -> None:
    assert services.keys() == {"kafka", "topics", "redis", "worker"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 5
    assert [image for image in images if not PINNED.fullmatch(image)] == []


def test_the_broker_is_the_version_that_tests_run_on(services: dict[str, Any]) -> None:
    assert {services[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{VERSION}"}


def test_the_worker_is_given_settings_that_there_are(services: dict[str, Any]) -> None:
    given = services["worker"]["environment"]
    assert given.keys() <= set(variables())
    assert all(name.startswith(PREFIX) for name in given)
    for policy in given[f"{PREFIX}POLICIES"].split(","):
        assert (REPOSITORY / policy).is_file()


def test_the_worker_is_asked_whether_it_lives_where_it_says(services: dict[str, Any]) -> None:
    http = Settings.model_fields["http"].get_default(call_default_factory=True)
    assert (
        f'"http://{http.host}:{http.port}/livez"' in services["worker"]["healthcheck"]["test"][-1]
    )


def test_all_topics_of_a_worker_are_created(services: dict[str, Any]) -> None:
    script = services["topics"]["command"][-1]
    [names] = re.findall(r"for topic in (.*);", script)
    [created] = re.findall(r'--topic "(\S+)"', script)
    topics = {name for key, name in KafkaSettings() if key.endswith("_topic") and name}
    assert {created.replace("$$topic", name) for name in names.split()} == topics


def test_the_worker_runs_as_nobody_special_from_files_that_are_there() -> None:
    last = DOCKERFILE.split("FROM ")[-1]
    [user] = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert f"useradd --uid 10001 --create-home {user}" in last
    [entry] = re.findall(r"^ENTRYPOINT \[(.*)\]", last, re.MULTILINE)
    assert shlex.split(entry) == ["imagewarden"]
    kept = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == kept
    assert all((REPOSITORY / name).exists() for name in copied)
