"""The few words that our dashboards are written in, over Grafana's Foundation SDK.

A panel is a title that asks or says something, how to read it, its unit, and its queries by what
the legend calls them. Queries name metrics alone: which job and instances is added here, for all
of them alike, from the variables at the top of the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as of
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

GREEN, YELLOW, ORANGE, RED, PURPLE, BLUE = "green", "yellow", "orange", "red", "purple", "blue"

#: What has a name of its own keeps its colour on every page.
COLOURS = {"allow": GREEN, "review": YELLOW, "block": RED, "undetermined": PURPLE}

Queries = Mapping[str, str]
"""Expressions by legend; ``{{label}}`` in a legend is the series' value of that label."""

Steps = Mapping[float, str]
"""Colours from which value on. Below the first all is well, unless that is ``LOWEST``."""

LOWEST = float("-inf")

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel | bargauge.Panel

Variable = of.QueryVariable | of.CustomVariable

_PAGES = ("overview", "pipeline", "policy", "safety")
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: What workers tell. Feedback is told by a process of its own, under another job.
_METRIC = re.compile(r"\b(up\b|process_\w+|imagewarden_(?!feedback_)\w+)(?:\{([^}]*)\})?")
_HEIGHT = 8


def lines(
    title: str,
    read: str,
    unit: str,
    queries: Queries,
    *,
    width: int = 12,
    stacked: bool = False,
    most: float | None = None,
    steps: Steps | None = None,
) -> Panel:
    """Over time. ``most`` is the top of the axis; ``steps`` draw lines across."""
    panel = timeseries.Panel().fill_opacity(40 if stacked else 8).line_width(1)
    panel.show_points(look.VisibilityMode.NEVER).axis_soft_min(0)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(look.LegendDisplayMode.TABLE)
        .placement(look.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "max", "lastNotNull"])
    )
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(look.TooltipDisplayMode.MULTI)
        .sort(look.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if steps:
        panel.thresholds(_thresholds(steps))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(look.GraphThresholdsStyleMode.DASHED)
        )
    for name, colour in COLOURS.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_name(name, [model.DynamicConfigValue("color", fixed)])
    return _asking(panel, title, read, unit, queries, width)


def number(
    title: str,
    read: str,
    unit: str,
    query: str,
    *,
    legend: str = "",
    width: int = 4,
    steps: Steps | None = None,
    none: str = "no data",
) -> Panel:
    """What holds now, in a colour; the ``legend`` beside it, and ``none`` in place of nothing."""
    panel = stat.Panel().graph_mode(look.BigValueGraphMode.NONE).no_value(none)
    panel.color_mode(look.BigValueColorMode.BACKGROUND_SOLID)
    panel.text_mode(look.BigValueTextMode.VALUE_AND_NAME if legend else look.BigValueTextMode.VALUE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(_thresholds(steps or {}))
    return _asking(panel, title, read, unit, {legend: query}, width, height=4, instant=True)


def bars(
    title: str,
    read: str,
    unit: str,
    queries: Queries,
    *,
    width: int = 12,
    most: float | None = None,
    steps: Steps | None = None,
) -> Panel:
    """What holds now, one bar a series, to compare them."""
    panel = bargauge.Panel().orientation(look.VizOrientation.HORIZONTAL).min(0)
    panel.display_mode(look.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(_thresholds(steps or {}))
    if most is not None:
        panel.max(most)
    return _asking(panel, title, read, unit, queries, width, instant=True)


def heat(title: str, read: str, unit: str, query: str, *, width: int = 12) -> Panel:
    """A histogram over time: ``query`` gives its buckets by ``le``."""
    panel = heatmap.Panel().y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(
        heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    )
    panel.cell_values(heatmap.CellValues().unit("reqps").decimals(2))
    return _asking(
        panel, title, read, unit, {"{{le}}": query}, width, format=PromQueryFormat.HEATMAP
    )


def rows(title: str, read: str, unit: str, query: str, *, width: int = 12) -> Panel:
    """What holds now as a table, a row for each series, its labels in columns."""
    panel = table.Panel()
    panel.with_transformation(
        model.DataTransformerConfig("organize", options={"excludeByName": {"Time": True}})
    )
    return _asking(
        panel, title, read, unit, {"": query}, width, instant=True, format=PromQueryFormat.TABLE
    )


def page(
    name: str,
    title: str,
    what: str,
    panels: Mapping[str, Sequence[Panel]],
    *,
    choices: Sequence[Variable] = (),
) -> str:
    """A dashboard in Grafana's JSON; ``panels`` by the heading that they stand under. ``choices``
    are variables besides those that every page has."""
    dashboard = (
        of.Dashboard(f"imagewarden · {title}")
        .uid(f"imagewarden-{name}")
        .description(what)
        .tags(["imagewarden"])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables(
            [
                of.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
                choice("job", "Job", "label_values(imagewarden_build_info, job)", one=True),
                choice("instance", "Instance", 'label_values(up{job="$job"}, instance)'),
                *choices,
            ]
        )
    )
    for other in _PAGES:
        if other != name:
            link = of.DashboardLink(other.capitalize()).type(model.DashboardLinkType.LINK)
            link.url(f"/d/imagewarden-{other}").include_vars(True).keep_time(True)
            dashboard.link(link)
    for heading, under in panels.items():
        dashboard.with_row(of.Row(heading))
        for panel in under:
            dashboard.with_panel(panel)
    built = dashboard.build()
    for id, laid in enumerate(built.panels or (), start=1):  # alike at every generation
        laid.id_val = id
    return json.dumps(built, cls=JSONEncoder, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def choice(name: str, label: str, values: str, *, one: bool = False) -> Variable:
    """Some, or all, of the values that Prometheus knows."""
    variable = of.QueryVariable(name).label(label).datasource(_SOURCE)
    variable.query({"query": values, "refId": name})
    variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.sort(model.VariableSort.ALPHABETICAL_ASC)
    if not one:
        variable.multi(True).include_all(True).all_value(".*")
        variable.current(model.VariableOption(True, ["All"], ["$__all"]))
    return variable


def length(name: str, label: str, *lengths: str) -> Variable:
    """One of some lengths of time, the first unless another is chosen."""
    variable = of.CustomVariable(name).label(label).values(",".join(lengths))
    return variable.current(model.VariableOption(True, lengths[0], lengths[0]))


def chosen(expression: str) -> str:
    """The expression with every metric narrowed to the job and the instances that are chosen."""

    def narrow(found: re.Match[str]) -> str:
        matchers = ", ".join(filter(None, ['job="$job", instance=~"$instance"', found[2]]))
        return f"{found[1]}{{{matchers}}}"

    return _METRIC.sub(narrow, expression)


def _asking(
    panel: Panel,
    title: str,
    read: str,
    unit: str,
    queries: Queries,
    width: int,
    *,
    height: int = _HEIGHT,
    instant: bool = False,
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> Panel:
    panel.title(title).description(read).unit(unit).datasource(_SOURCE).height(height).span(width)
    for number, (legend, expression) in enumerate(queries.items()):
        query = Dataquery().ref_id(chr(ord("A") + number)).expr(chosen(expression)).format(format)
        query.legend_format(legend or "__auto")
        panel.with_target(query.instant() if instant else query.range())
    return panel


def _thresholds(steps: Steps) -> of.ThresholdsConfig:
    colours = {LOWEST: GREEN, **steps}
    return (
        of.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps(
            [
                model.Threshold(value=None if at == LOWEST else at, color=colour)
                for at, colour in colours.items()
            ]
        )
    )
