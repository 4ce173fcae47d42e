"""Prometheus itself, from the system's packages: it scrapes what a test tells it to."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from worker.children import die_with_parent

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_TAIL_BYTES = 3000


def unavailable() -> str | None:
    """Why Prometheus cannot run here; None where it can."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not on the PATH: on Debian, apt-get install prometheus"
    return None


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What ``promtool`` says of files."""
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


class Prometheus:
    """A server that answers at ``address``."""

    def __init__(self, address: str) -> None:
        self._api = f"http://{address}/api/v1"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that it gives now. Raises ``ValueError`` where Prometheus refuses it."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Those of the rule files, with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def label_values(self, label: str, selector: str) -> list[str]:
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self._api}/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters}: {answer['error']}")
        return answer["data"]


@contextmanager
def scraping(
    jobs: Mapping[str, Sequence[str]],
    *,
    every: str = "500ms",
    rule_groups: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Prometheus]:
    """A server on a free loopback port that scrapes the targets (host:port) of ``jobs``; gone with
    its data when the context ends. Rules are evaluated as often as targets are scraped, whatever
    their groups say.

    Raises ``RuntimeError`` with the end of its log where it does not start.
    """
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="prometheus-")))
        told = {
            "global": {"scrape_interval": every, "evaluation_interval": every},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [*targets]}]}
                for job, targets in jobs.items()
            ],
        }
        groups = [{**group, "interval": every} for group in rule_groups]
        for name, content in (("prometheus.yml", told), ("rules.yml", {"groups": groups})):
            with (folder / name).open("w") as file:
                YAML(typ="safe").dump(content, file)
        log = parts.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                "--log.level=info",
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
        parts.callback(process.wait)
        parts.callback(process.kill)
        yield Prometheus(_address(process, folder / "log"))
        process.terminate()
        process.wait(timeout=_STOP_SECONDS)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it serves, once it does."""
    deadline = time.monotonic() + _START_SECONDS
    while "Server is ready" not in (told := log.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Prometheus did not start; its log ends: {told[-_TAIL_BYTES:]}")
        time.sleep(0.05)
    found = re.search(r'"Listening on" address=(\S+)', told)
    assert found is not None, told
    return found[1]
