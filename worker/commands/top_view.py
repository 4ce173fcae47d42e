"""One frame of ``imagewarden top``, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker.commands.render import COLOURS
from worker.commands.top_numbers import Numbers, StageNumbers

WIDTH = 80
_BAR = 20
_SHOWN_ERRORS = 4


def frame(
    endpoints: Mapping[str, Numbers | str], fleet: Numbers | None, title: str
) -> RenderableType:
    """``endpoints`` have the reason in place of their numbers where they did not answer, ``fleet``
    those of all that did."""
    parts: list[RenderableType] = [Text(title, style="bold", no_wrap=True, overflow="ellipsis")]
    if fleet is not None:
        parts.append(_endpoints(endpoints, fleet))
    for name, why in endpoints.items():
        if isinstance(why, str):
            parts.append(_fitting(Text(f"{name}  {why}", style="red")))
    if fleet is not None:
        parts += [_stages(fleet.stages), *_lines(fleet)]
    return Group(*parts)


def _endpoints(endpoints: Mapping[str, Numbers | str], fleet: Numbers) -> Table:
    table = Table(box=None, pad_edge=False, width=WIDTH)
    table.add_column("worker", ratio=1, no_wrap=True, overflow="ellipsis")
    for column in ("verdicts/s", "lag", "oldest", "cached", "median", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("slowest", no_wrap=True)
    for name, numbers in endpoints.items():
        if not isinstance(numbers, str):
            table.add_row(Text(name), *_cells(numbers))
    if table.row_count > 1:
        table.add_row(Text("all"), *_cells(fleet), style="bold")
    return table


def _cells(numbers: Numbers) -> Sequence[Text | str]:
    return (
        _number(numbers.verdicts),
        _number(sum(numbers.lag.values()) if numbers.lag else None),
        _time(numbers.oldest_seconds),
        _share(numbers.cached),
        _time(numbers.median_seconds),
        _time(numbers.p99_seconds),
        numbers.slowest.stage if numbers.slowest else "",
    )


def _stages(stages: Sequence[StageNumbers]) -> Table:
    table = Table(box=None, pad_edge=False, width=WIDTH)
    table.add_column("stage", ratio=1, no_wrap=True)
    table.add_column("busy", no_wrap=True)
    for column in ("", "waiting", "waits", "works"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in stages:
        table.add_row(
            each.stage,
            _bar(each.busy),
            _share(each.busy),
            _number(each.waiting),
            _time(each.waited_seconds),
            _time(each.worked_seconds),
        )
    return table


def _lines(fleet: Numbers) -> list[Text]:
    slowest, fullest = fleet.slowest, fleet.fullest
    lines = []
    if slowest is not None:
        said = f"slowest stage  {slowest.stage}, {_time(slowest.seconds)} an image"
        if fullest is not None and fullest.busy:
            said += f"; fullest: {fullest.stage}, {_share(fullest.busy)} busy"
        lines.append(Text(said))
    actions = Text("actions/s      ")
    for action, rate in sorted(fleet.actions.items()):
        actions.append(f"{action} {_number(rate)}  ", style=COLOURS.get(action, ""))
    lines.append(actions)
    lag = "  ".join(f"{topic} {_number(count)}" for topic, count in sorted(fleet.lag.items()))
    lines.append(Text(f"lag            {lag or 'not told'}{_trend(fleet)}"))
    if fleet.errors or fleet.dead_letters:
        told = [f"{code} {_number(rate)}" for code, rate in fleet.errors.items()][:_SHOWN_ERRORS]
        if fleet.dead_letters:
            told.insert(0, f"dead letters {_number(fleet.dead_letters)}")
        lines.append(Text(f"problems/s     {'  '.join(told)}", style="yellow"))
    if fleet.warnings:
        lines.append(Text(f"look at        {'; '.join(fleet.warnings)}", style="red"))
    return [_fitting(line) for line in lines]


def _fitting(line: Text) -> Text:
    line.truncate(WIDTH, overflow="ellipsis")
    return line


def _trend(fleet: Numbers) -> str:
    lag, growth = sum(fleet.lag.values()), fleet.lag_growth
    if not lag or not growth:
        return ""
    if growth > 0:
        return f", growing by {_number(growth)}/s"
    return f", gone in {_time(lag / -growth)}"


def _bar(share: float | None) -> Text:
    if share is None:
        return Text("")
    full = round(share * _BAR)
    colour = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
    return Text("━" * full, style=colour) + Text("─" * (_BAR - full), style="dim")


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _number(number: float | None) -> str:
    if number is None:
        return ""
    if number >= 9999.5:
        return f"{number / 1000:,.0f}k" if number < 9.9995e6 else f"{number / 1e6:,.0f}M"
    return f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.2g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 or seconds == 0 else "<1 ms"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 358_200 else f"{seconds / 86_400:.0f} d"
