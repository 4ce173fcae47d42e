"""What is measured is written, read, shown and compared; nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.bench.report import markdown, reached, worsened
from worker.bench.results import Figure, Report, Result, read_report, write_report
from worker.errors import Misconfigured

MACHINE = {"processors": "2 × a processor", "commit": "0123abc"}


def report(*rounds: float, unit: str = "1", name: str = "of model alone") -> Report:
    figures = {name: Figure(unit, rounds)}
    wanted = {name: "≥ 0.8"}
    result = Result("end-to-end", {"model": "pocket"}, figures, wanted)
    return Report("2026-11-21T12:00:00+00:00", MACHINE, (result,))


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(0.5, 0.7, 0.6)
    write_report(written, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == written


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"measured_at": 1}'])
def test_what_is_no_report_is_refused_in_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match="give a file that `imagewarden bench --json` wrote"):
        read_report(path)


def test_what_was_wanted_stands_beside_what_was_found_and_first() -> None:
    told = markdown(report(0.5, 0.9, 0.81))
    found = "| of model alone | 0.810 | 0.500 | 0.900 | 3 |"
    aim = "| end-to-end | pocket | of model alone | ≥ 0.8 | 0.810 | 0.500 | 0.900 | yes |"
    assert told.index("- commit: 0123abc") < told.index(aim) < told.index(found)


def test_where_nothing_was_wanted_no_table_says_so() -> None:
    result = Result("fetch", {}, {"requests/s": Figure("requests/s", (5.0,))})
    told = markdown(Report("2026-11-21T12:00:00+00:00", MACHINE, (result,)))
    assert "wanted" not in told


def test_a_scenario_that_was_not_measured_says_why() -> None:
    failed = Result("peer: one", {}, {}, failed="no wheel for this Python")
    table = markdown(Report("2026-11-21T12:00:00+00:00", MACHINE, (failed,)))
    assert "Not measured: no wheel for this Python" in table


@pytest.mark.parametrize(
    ("wanted", "median", "holds"),
    [("≥ 0.8", 0.8, True), ("≥ 0.8", 0.79, False), ("≤ 5", 5, True), ("< 6", 6, False)],
)
def test_what_is_wanted_is_held_against_the_median(wanted: str, median: float, holds: bool) -> None:
    assert reached(Figure("1", (median,)), wanted) is holds


def test_a_ratio_that_fell_by_more_than_both_spreads_is_told() -> None:
    [sentence] = worsened(report(0.5, 0.51), report(0.8, 0.81))
    assert sentence.startswith("end-to-end: of model alone is 0.505, and was 0.805")


def test_a_cost_that_rose_is_told() -> None:
    name = "core-ms/image, worker"
    new = report(9.0, 9.1, unit="core-ms/image", name=name)
    assert worsened(new, report(5.0, 5.1, unit="core-ms/image", name=name))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
def test_a_report_is_never_worse_than_itself(rounds: list[float]) -> None:
    assert worsened(report(*rounds), report(*rounds)) == []


@given(st.floats(0.5, 1), st.floats(0, 0.4))
def test_what_became_better_is_not_told(before: float, gain: float) -> None:
    assert worsened(report(before + gain), report(before)) == []


def test_rates_and_other_machines_are_not_compared() -> None:
    slow = report(10, unit="images/s", name="images/s")
    fast = report(100, unit="images/s", name="images/s")
    assert worsened(slow, fast) == []
    elsewhere = Report("2026-11-21T12:00:00+00:00", {"processors": "64"}, report(0.9).results)
    assert worsened(report(0.1), elsewhere) == []
