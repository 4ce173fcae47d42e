"""Pages: escaped, whole, and numbers as people write them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from tests.markup import Page
from worker.authoring.html import (
    check_place,
    decimals,
    jpeg,
    percents,
    render,
    short,
    write_page,
)
from worker.authoring.quantities import NONE, count, counted, decimal, listed, percent, sentence
from worker.authoring.results import Interval
from worker.errors import Misconfigured

T = "\N{NARROW NO-BREAK SPACE}"


def test_base_page_is_well_formed_and_loads_nothing() -> None:
    page = Page(render("base.html.j2"))
    assert page.problems == page.loaded() == []


def test_base_page_forbids_loading_anything() -> None:
    policies = [
        meta["content"] for meta in Page(render("base.html.j2")).all("meta") if "http-equiv" in meta
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "card"])
def test_colours_stand_out_from_what_is_behind_them(ground: str, theme: int) -> None:
    """WCAG 2.1: 4.5 to 1 for text (1.4.3), 3 to 1 for graphics (1.4.11)."""
    colours = {
        name: pair[theme]
        for name, *pair in re.findall(
            r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", render("base.html.j2")
        )
    }
    behind = luminance(colours[ground])
    for name in ("ink", "quiet", "link", "tone-a", "tone-b", "tone-c", "tone-d"):
        dark, light = sorted((luminance(colours[name]), behind))
        needed = 3 if name.startswith("tone") else 4.5
        assert (light + 0.05) / (dark + 0.05) >= needed, name


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.1 defines it."""
    levels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    return sum(of * x for of, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_name_that_the_context_lacks_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError):
        render("calibration.html.j2")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0"),
        (1e-6, "<0.001"),
        (0.00054, "0.054"),
        (0.0089, "0.89"),
        (0.021, "2.1"),
        (0.5, "50"),
        (0.996, "99.6"),
        (1.0, "100"),
    ],
)
def test_percent_has_the_digits_that_mean_something(share: float, text: str) -> None:
    assert percent(share) == f"{text}{T}%"


def test_where_there_is_no_number_stands_a_dash() -> None:
    assert {percent(None), percent(math.nan), decimal(None), percents(None), decimals(None)} == {
        NONE
    }


def test_intervals_are_written_with_their_estimate() -> None:
    assert percents(Interval(0.021, 0.014, 0.03)) == f"2.1{T}% (1.4–3.0)"
    assert decimals(Interval(0.981, 0.972, 0.989)) == "0.981 (0.972–0.989)"


def test_numbers_in_sentences() -> None:
    assert [count(1191), counted(1, "image"), counted(2000, "image")] == [
        *("1,191", "1 image"),
        "2,000 images",
    ]
    assert counted(2, "category", "categories") == "2 categories"
    assert decimal(-2.3195) == "−2.320"
    assert [listed(["a"]), listed(["a", "b"]), listed("abc")] == ["a", "a and b", "a, b and c"]


def test_words_become_a_sentence() -> None:
    assert {sentence("it is so"), sentence("It is so.")} == {"It is so."}


def test_jpeg_becomes_its_own_address() -> None:
    assert jpeg(b"\xff\xd8") == "data:image/jpeg;base64,/9g="


def test_digest_is_shortened() -> None:
    assert short("sha256:" + "ab" * 32) == "abababababab"


def test_page_is_written_whole_whatever_the_names_in_it(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    write_page(place, "<p>bild-\udce4.jpg ü</p>")
    assert place.read_text() == "<p>bild-?.jpg ü</p>"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("name", ["missing/report.html", "."])
def test_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(Misconfigured, match="folder"):
        check_place(tmp_path / name)


def test_place_of_something_else_is_refused(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1")
    with pytest.raises(
        Misconfigured, match=r"policy\.yaml: a report is HTML; name a file that ends"
    ):
        check_place(policy)


def test_place_that_can_be_written_is_left_alone(tmp_path: Path) -> None:
    check_place(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_page_that_the_system_refuses_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be written"):
        write_page(tmp_path / "missing" / "report.html", "")
