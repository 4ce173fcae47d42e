"""Charts: what is where, and that everything in them is described and escaped."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.authoring.axes import counts, log_odds, powers, shares, shares_from_small
from worker.authoring.charts import WIDTH, Bars, Dots, Line, Mark, Spot, Upright, chart

MARKS: list[Mark] = [
    Line([(0.0, 0.0), (1.0, 1.0)], name="a line"),
    Dots([(0.5, 0.5, 0.4, 0.6)], ["half"], name="a dot"),
    Bars([(0.1, 0.2, 0.0, 0.3)], ["a third"], name="a bar"),
    Upright(0.7, name="a threshold"),
    Spot(0.2, 0.9, "there", name="a spot"),
]


def drawn(marks: list[Mark], **keys: str) -> Element:
    texts = {"title": "Title", "description": "Description", **keys}
    return fromstring(
        chart(texts["title"], texts["description"], shares("across"), shares("up"), marks)
    )


def test_chart_says_what_it_is_before_anything_else() -> None:
    svg = drawn(MARKS)
    assert [(part.tag, part.text) for part in svg[:2]] == [
        ("title", "Title"),
        ("desc", "Description"),
    ]
    assert svg.get("role") == "img"


def test_axes_are_labelled_and_have_ticks_with_units() -> None:
    texts = [text.text for text in drawn([]).iter("text")]
    assert texts.count("20\u202f%") == 2
    assert {"across", "up"} <= set(texts)


def test_every_named_mark_stands_in_the_legend_and_no_other() -> None:
    texts = [text.text for text in drawn([*MARKS, Line([(0, 0), (1, 0)])]).iter("text")]
    assert [text for text in texts if (text or "").startswith("a ")] == [
        mark.name for mark in MARKS
    ]


def test_long_legend_takes_more_lines_and_leaves_the_plot_its_height() -> None:
    few = drawn([Line([(0, 0)], name="name")])
    many = drawn([Line([(0, 0)], name=f"a rather long name {n}") for n in range(5)])
    _, _, _, low = map(float, (few.get("viewBox") or "").split())
    _, _, _, high = map(float, (many.get("viewBox") or "").split())
    assert high > low
    assert all(float(text.get("x", 0)) < WIDTH for text in many.iter("text"))


def test_what_lies_beyond_an_axis_is_drawn_at_its_end() -> None:
    [line] = drawn([Line([(-5.0, 0.0), (7.0, 2.0)])]).iter("polyline")
    assert line.get("points") == drawn([Line([(0, 0), (1, 1)])]).find("polyline").get("points")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "hostile", ["</svg><script>alert(1)</script>", '"><img onerror=x>', "&lt;"]
)
def test_markup_in_texts_stays_text(hostile: str) -> None:
    svg = drawn([Bars([(0, 1, 0, 1)], [hostile], name=hostile)], title=hostile, description=hostile)
    assert svg.find("title").text == svg.find("desc").text == hostile  # type: ignore[union-attr]
    assert not list(svg.iter("script"))


@given(high=st.just(0.0) | st.floats(1e-6, 1.0))
def test_axis_of_shares_reaches_at_least_as_far_as_asked_in_few_ticks(high: float) -> None:
    axis = shares("", high)
    assert axis.high >= high * (1 - 1e-9)
    assert 3 <= len(axis.ticks) <= 7
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


@given(high=st.integers(0, 10**9))
def test_axis_of_counts_reaches_at_least_as_far_as_asked_in_whole_numbers(high: int) -> None:
    axis = counts("", high)
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 7
    assert all(value == int(value) for value, _ in axis.ticks)


@pytest.mark.parametrize(
    "axis", [shares(""), shares_from_small(""), counts("", 40), powers("", 0.001), log_odds("")]
)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_axis_keeps_order_and_stays_within(axis, a: float, b: float) -> None:  # type: ignore[no-untyped-def]
    low, high = sorted((a, b))
    assert 0 <= axis.place(low) <= axis.place(high) <= 1


def test_powers_of_ten_are_marked_from_the_low_end_on() -> None:
    axis = powers("", 0.5 / 1016)
    assert [value for value, _ in axis.ticks] == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert [text[:-2] for _, text in axis.ticks] == ["0.1", "1", "10", "100"]
