"""The dashboards that are committed: generated, complete, and about metrics that there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests import watching
from tests.conftest import REPOSITORY

PROVISIONING = REPOSITORY / "deploy" / "grafana" / "provisioning"


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in watching.dashboards().items():
        for panel in watching.panels(dashboard):
            yield name, panel


each_panel = pytest.mark.parametrize(
    "panel", [pytest.param(panel, id=f"{name}: {panel['title']}") for name, panel in panels()]
)


def test_committed_dashboards_are_those_that_the_source_generates() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="writes the dashboards")
    from deploy.grafana.__main__ import PAGES

    committed = {path.stem: path.read_text() for path in sorted(watching.DASHBOARDS.glob("*.json"))}
    assert committed == {name: page() for name, page in PAGES.items()}, "run make dashboards"


def test_queries_are_narrowed_to_the_job_and_instances_that_are_chosen() -> None:
    panels = pytest.importorskip("deploy.grafana.panels", reason="needs grafana_foundation_sdk")
    assert panels.chosen('rate(imagewarden_x_total{a="b"}[5m]) / sum(up)') == (
        'rate(imagewarden_x_total{job="$job", instance=~"$instance", a="b"}[5m])'
        ' / sum(up{job="$job", instance=~"$instance"})'
    )


def test_queries_of_feedback_are_not_narrowed_to_the_workers_job() -> None:
    panels = pytest.importorskip("deploy.grafana.panels", reason="needs grafana_foundation_sdk")
    assert panels.chosen("imagewarden_feedback_recall") == "imagewarden_feedback_recall"


@each_panel
def test_panel_asks_something_says_how_to_read_it_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"].endswith("?")
    assert panel["description"].endswith(".")
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


@each_panel
def test_panel_is_about_metrics_that_there_are(panel: dict[str, Any]) -> None:
    named = {
        name
        for target in panel["targets"]
        for name in watching.Question(panel["title"], target["expr"]).metrics()
    }
    assert named - watching.declared() == set()


@each_panel
def test_series_of_a_panel_can_be_told_apart(panel: dict[str, Any]) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    assert all(legend != "__auto" for legend in legends) or panel["type"] in ("stat", "table")


@pytest.mark.parametrize("name", watching.dashboards())
def test_panels_of_a_page_lie_beside_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in watching.dashboards()[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", watching.dashboards())
def test_titles_of_a_page_are_told_apart(name: str) -> None:
    titles = [panel["title"] for panel in watching.panels(watching.dashboards()[name])]
    assert len(set(titles)) == len(titles)


def test_pages_lead_to_each_other() -> None:
    dashboards = watching.dashboards()
    ids = {dashboard["uid"] for dashboard in dashboards.values()}
    for dashboard in dashboards.values():
        led = {link["url"].rpartition("/")[2] for link in dashboard["links"]}
        assert led == ids - {dashboard["uid"]}


def test_a_prometheus_is_provisioned_and_the_folder_of_dashboards() -> None:
    read = YAML(typ="safe").load
    [source] = read(PROVISIONING / "datasources" / "prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    scraped = read(REPOSITORY / "deploy" / "prometheus" / "prometheus.yml")["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    [provider] = read(PROVISIONING / "dashboards" / "imagewarden.yaml")["providers"]
    assert provider["type"] == "file"
