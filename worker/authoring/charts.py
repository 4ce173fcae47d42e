"""Charts as inline SVG: marks upon two axes. Colours are the page's, by CSS classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from worker.authoring.axes import Axis

WIDTH: Final = 440
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 14, 44  # margins around the plot, in the SVG's units
_LEGEND: Final = 18  # height of one of its lines
_LETTER: Final = 6.4  # width of a letter, about; only the legend's spacing depends on it

#: Names of the page's colours: ``a`` to ``d`` are told apart by colour-blind eyes too.
Tone = Literal["a", "b", "c", "d", "ink", "faint"]
Point = tuple[float, float]


# ---------------------------------------------------------------- marks


@dataclass(frozen=True, slots=True)
class Plot:
    """Where marks are drawn: ``x`` and ``y`` turn values into the SVG's units."""

    parent: Element
    across: Axis
    up: Axis
    top: float
    bottom: float

    def x(self, value: float) -> float:
        return _LEFT + self.across.place(value) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - self.up.place(value) * (self.bottom - self.top)


class Mark(Protocol):
    """What can be drawn; with a ``name`` it stands in the legend."""

    @property
    def tone(self) -> Tone: ...
    @property
    def name(self) -> str | None: ...
    def draw(self, plot: Plot) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    points: Sequence[Point]
    tone: Tone = "a"
    name: str | None = None
    dashed: bool = False

    def draw(self, plot: Plot) -> None:
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in self.points)
        kind = "line dashed" if self.dashed else "line"
        _add(plot.parent, "polyline", points=path, kind=f"{kind} tone-{self.tone}")


@dataclass(frozen=True, slots=True)
class Dots:
    """Points with intervals: (x, y, low, high). ``words`` are shown on pointing at each."""

    points: Sequence[tuple[float, float, float, float]]
    words: Sequence[str]
    tone: Tone = "a"
    name: str | None = None

    def draw(self, plot: Plot) -> None:
        for (x, y, low, high), words in zip(self.points, self.words, strict=True):
            group = _add(plot.parent, "g", kind=f"tone-{self.tone}")
            _add(group, "title").text = words
            at = plot.x(x)
            _line(group, at, plot.y(low), at, plot.y(high), "whisker")
            _add(group, "circle", cx=at, cy=plot.y(y), r=3.5, kind="dot")


@dataclass(frozen=True, slots=True)
class Bars:
    """Rectangles: (left, right, bottom, top). ``words`` are shown on pointing at each."""

    spans: Sequence[tuple[float, float, float, float]]
    words: Sequence[str]
    tone: Tone = "a"
    name: str | None = None

    def draw(self, plot: Plot) -> None:
        for (left, right, bottom, top), words in zip(self.spans, self.words, strict=True):
            x, y = plot.x(left), plot.y(max(bottom, top))
            width, height = plot.x(right) - x, plot.y(min(bottom, top)) - y
            if height > 0:
                gap = 1 if width > 3 else 0
                bar = _add(
                    plot.parent,
                    "rect",
                    x=x,
                    y=y,
                    width=width - gap,
                    height=height,
                    kind=f"bar tone-{self.tone}",
                )
                _add(bar, "title").text = words


@dataclass(frozen=True, slots=True)
class Upright:
    """A line from bottom to top at ``x``."""

    x: float
    tone: Tone = "ink"
    name: str | None = None
    dashed: bool = False

    def draw(self, plot: Plot) -> None:
        kind = "line dashed" if self.dashed else "line"
        at = plot.x(self.x)
        _line(plot.parent, at, plot.top, at, plot.bottom, f"{kind} tone-{self.tone}")


@dataclass(frozen=True, slots=True)
class Spot:
    """A place on a curve, filled or hollow. ``words`` are shown on pointing at it."""

    x: float
    y: float
    words: str
    tone: Tone = "ink"
    name: str | None = None
    hollow: bool = False

    def draw(self, plot: Plot) -> None:
        kind = "hollow" if self.hollow else "spot"
        circle = _add(
            plot.parent,
            "circle",
            cx=plot.x(self.x),
            cy=plot.y(self.y),
            r=5,
            kind=f"{kind} tone-{self.tone}",
        )
        _add(circle, "title").text = self.words


# ---------------------------------------------------------------- the chart


def chart(
    title: str,
    description: str,
    across: Axis,
    up: Axis,
    marks: Sequence[Mark],
    height: int = HEIGHT,
) -> Markup:
    """The SVG. ``title`` and ``description`` are for those who do not see it: what it is, and what
    it shows. The legend comes above the plot, which is ``height`` high with its axes."""
    svg = Element("svg", role="img")
    svg.set("class", "chart")
    _add(svg, "title").text = title
    _add(svg, "desc").text = description
    legend = _draw_legend(svg, [mark for mark in marks if mark.name])
    svg.set("viewBox", f"0 0 {WIDTH} {height + legend}")
    plot = Plot(svg, across, up, legend + _TOP, legend + height - _BOTTOM)
    _draw_axes(plot)
    for mark in marks:
        mark.draw(plot)
    return Markup(tostring(svg, encoding="unicode"))  # ElementTree has escaped it


def _draw_axes(plot: Plot) -> None:
    right = WIDTH - _RIGHT
    for value, text in plot.up.ticks:
        y = plot.y(value)
        _line(plot.parent, _LEFT, y, right, y, "grid")
        _text(plot.parent, _LEFT - 7, y + 4, text, "end", "tick")
    for value, text in plot.across.ticks:
        x = plot.x(value)
        _line(plot.parent, x, plot.bottom, x, plot.bottom + 4, "axis")
        _text(plot.parent, x, plot.bottom + 17, text, "middle", "tick")
    _line(plot.parent, _LEFT, plot.bottom, right, plot.bottom, "axis")
    centre = (_LEFT + right) / 2
    _text(plot.parent, centre, plot.bottom + 38, plot.across.label, "middle", "label")
    middle = (plot.top + plot.bottom) / 2
    label = _text(plot.parent, 12, middle, plot.up.label, "middle", "label")
    label.set("transform", f"rotate(-90 12 {middle:.1f})")


def _draw_legend(svg: Element, marks: Sequence[Mark]) -> int:
    """Its height; it takes as many lines as it needs."""
    x, y = float(_LEFT), 0
    for mark in marks:
        width = 26 + _LETTER * len(mark.name or "")
        if x > _LEFT and x + width > WIDTH:
            x, y = float(_LEFT), y + _LEGEND
        key = _add(svg, "g", kind=f"tone-{mark.tone}")
        _draw_key(key, mark, x, y + 9)
        _text(svg, x + 20, y + 13, mark.name or "", "start", "note")
        x += width + 6
    return y + _LEGEND if marks else 0


def _draw_key(group: Element, mark: Mark, x: float, y: float) -> None:
    match mark:
        case Line() | Upright():
            kind = "line dashed" if mark.dashed else "line"
            _line(group, x, y, x + 15, y, kind)
        case Spot():
            kind = "hollow" if mark.hollow else "spot"
            _add(group, "circle", cx=x + 8, cy=y, r=5, kind=kind)
        case Dots():
            _line(group, x + 8, y - 7, x + 8, y + 7, "whisker")
            _add(group, "circle", cx=x + 8, cy=y, r=3.5, kind="dot")
        case _:
            _add(group, "rect", x=x, y=y - 5, width=14, height=10, kind="bar")


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    _add(parent, "line", x1=x1, y1=y1, x2=x2, y2=y2, kind=kind)


def _text(parent: Element, x: float, y: float, text: str, anchor: str, kind: str) -> Element:
    element = _add(parent, "text", x=x, y=y, kind=kind)
    element.set("text-anchor", anchor)
    element.text = text
    return element


def _add(parent: Element, tag: str, kind: str | None = None, **numbers: float | str) -> Element:
    element = SubElement(parent, tag)
    if kind:
        element.set("class", kind)
    for name, value in numbers.items():
        element.set(name, value if isinstance(value, str) else f"{value:.1f}")
    return element
