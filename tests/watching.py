"""What is asked of Prometheus by the dashboards, the alerts and the rules, as Grafana and
Prometheus will read it: from the files in deploy/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import Metric
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from worker import telemetry

DASHBOARDS = REPOSITORY / "deploy" / "grafana" / "dashboards"
ALERTS = REPOSITORY / "deploy" / "alerts"
RULE_FILES = tuple(sorted(ALERTS.glob("*.yaml")))

_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_count", "_sum"),
    "info": ("_info",),
    "gauge": ("",),
}
_NAME = re.compile(r"\bimagewarden_\w+")


@dataclass(frozen=True, slots=True)
class Question:
    """An expression, and who asks it."""

    asker: str
    expression: str

    def metrics(self) -> set[str]:
        """Those of ours that it names."""
        return set(_NAME.findall(self.expression))


def dashboards() -> dict[str, dict[str, Any]]:
    """By name, as Grafana reads them."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Without the headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rule_groups() -> list[dict[str, Any]]:
    return [group for path in RULE_FILES for group in YAML(typ="safe").load(path)["groups"]]


def rules() -> list[dict[str, Any]]:
    """Alerts and recording rules."""
    return [rule for group in rule_groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def questions() -> Iterator[Question]:
    """Of panels and of rules."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Question(f"{name} › {panel['title']}", target["expr"])
    for rule in rules():
        yield Question(rule.get("alert") or rule["record"], rule["expr"])


def declared() -> set[str]:
    """Every name that a sample can have."""
    return {family.name + suffix for family in _families() for suffix in _SUFFIXES[family.type]}


def _families() -> Iterator[Metric]:
    yield from telemetry.REGISTRY.collect()
    for metric in (telemetry.PROCESSES, telemetry.PROCESS_RESTARTS):  # of the supervisor
        yield from metric.describe()
