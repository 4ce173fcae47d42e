"""The alerts: each fires and is silent when it should be, and leads to a runbook that helps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from tests import prometheus_server, watching
from tests.conftest import REPOSITORY
from tests.prometheus_server import promtool
from worker.cli import cli
from worker.settings import PREFIX
from worker.settings_load import variables

RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()
CONFIG = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"
TESTS = tuple(sorted((watching.ALERTS / "tests").glob("*.yaml")))

#: The alerts' sections of the runbook, by title.
SECTIONS = {
    section.partition("\n")[0]: section
    for section in re.split(r"^###? ", RUNBOOK, flags=re.M)
    if section.startswith("Imagewarden")
}

needs_promtool = pytest.mark.skipif(
    prometheus_server.unavailable() is not None, reason=str(prometheus_server.unavailable())
)
each_alert = pytest.mark.parametrize("alert", watching.alerts(), ids=lambda alert: alert["alert"])


# ---------------------------------------------------------------- the rules


@needs_promtool
def test_rules_are_valid() -> None:
    checked = promtool("check", "rules", *watching.RULE_FILES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
@pytest.mark.parametrize("tests", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_when_they_should_be(tests: Path) -> None:
    tested = promtool("test", "rules", tests)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_the_configuration_is_valid() -> None:
    checked = promtool("check", "config", "--syntax-only", CONFIG)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    expected = [
        (of["alertname"], bool(of["exp_alerts"]))
        for path in TESTS
        for test in YAML(typ="safe").load(path)["tests"]
        for of in test["alert_rule_test"]
    ]
    names = [alert["alert"] for alert in watching.alerts()]
    assert sorted(expected) == sorted((name, fires) for name in names for fires in (False, True))


@each_alert
def test_alert_says_how_urgent_it_is_what_happened_and_to_what(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    said = alert["annotations"]
    assert said.keys() == {"summary", "description", "runbook_url"}
    assert not said["summary"].endswith(".")
    assert said["description"].endswith(".")


@pytest.mark.parametrize(
    "rule", watching.rules(), ids=lambda rule: rule.get("alert") or rule["record"]
)
def test_rule_is_about_metrics_that_there_are(rule: dict[str, Any]) -> None:
    recorded = re.compile(r"imagewarden:\S+?\b(?= |\{|$)")
    named = watching.Question("rule", recorded.sub("", rule["expr"])).metrics()
    assert named - watching.declared() == set()
    records = {other["record"] for other in watching.rules() if "record" in other}
    assert set(re.findall(r"imagewarden:[\w:]+", rule["expr"])) <= records


def test_the_workers_are_scraped_under_the_name_that_the_alerts_know_them_by() -> None:
    jobs = {config["job_name"] for config in YAML(typ="safe").load(CONFIG)["scrape_configs"]}
    known = {
        name for alert in watching.alerts() for name in re.findall(r'job="(.+?)"', alert["expr"])
    }
    assert known == {"imagewarden"}
    assert known <= jobs


# ---------------------------------------------------------------- the runbook


@each_alert
def test_alert_leads_to_its_section_which_says_what_it_means_where_to_look_and_what_to_do(
    alert: dict[str, Any],
) -> None:
    name = alert["alert"]
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    means, look, do = (SECTIONS[name].find(f"**{part}.**") for part in ("Means", "Look", "Do"))
    assert 0 < means < look < do


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert SECTIONS.keys() == {alert["alert"] for alert in watching.alerts()}


def test_panels_that_the_runbook_names_are_on_the_dashboards() -> None:
    there = {
        f"{name.capitalize()} › {panel['title']}"
        for name, dashboard in watching.dashboards().items()
        for panel in watching.panels(dashboard)
    }
    named = set(re.findall(r"\*\*(\w+ › [^*]+)\*\*", RUNBOOK))
    assert named
    assert named - there == set()


def test_each_section_names_a_panel() -> None:
    silent = [name for name, section in SECTIONS.items() if " › " not in section]
    assert silent == ["ImagewardenNotReady"]  # it serves no more than its probe


def test_settings_that_the_runbook_names_exist() -> None:
    assert set(re.findall(rf"{PREFIX}\w+", RUNBOOK)) - set(variables()) == set()


def test_commands_that_the_runbook_names_exist() -> None:
    named = re.findall(r"`imagewarden ([a-z -]+)", RUNBOOK)
    assert named
    for words in named:
        command: Any = typer.main.get_command(cli)
        for word in words.split():
            if word.startswith("--"):
                assert word in {name for option in command.params for name in option.opts}, words
            elif groups := getattr(command, "commands", None):
                assert word in groups, words
                command = groups[word]


def test_links_within_the_runbook_lead_to_sections() -> None:
    anchors = {name.lower() for name in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) - anchors == set()
