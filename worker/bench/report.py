"""A report as a table for people, and what became worse since the last one."""

from __future__ import annotations

from collections.abc import Iterator

from worker.bench.results import Figure, Report, Result

#: Of these, medians of two runs on one machine can be compared; rates follow its pace.
_COMPARED = {"1": 1, "core-ms/image": -1, "core-ms/verdict": -1}  # and which way is better

_CONDITIONS = ("model", "engine", "device")  # of two results, what tells them apart


def markdown(report: Report) -> str:
    """What was wanted beside what was found, then all that was found: medians, with the least and
    the greatest of the rounds."""
    machine = [f"- {name}: {value}" for name, value in report.machine.items()]
    aims = [line for result in report.results for line in _aims(result)]
    results = [line for result in report.results for line in _section(result)]
    lines = ["# Measured", "", f"{report.measured_at}, on", "", *machine, ""]
    if aims:
        lines += [
            "## What was wanted",
            "",
            "| scenario | with | figure | wanted | median | from | to | reached |",
            "|---|---|---|---|---|---|---|---|",
            *aims,
            "",
        ]
    return "\n".join([*lines, *results]).rstrip() + "\n"


def _aims(result: Result) -> Iterator[str]:
    with_ = " ".join(value for key in _CONDITIONS if (value := result.conditions.get(key)))
    for name, wanted in result.wanted.items():
        if figure := result.figures.get(name):
            answer = "yes" if reached(figure, wanted) else "no"
            yield _row(result.scenario, with_, name, wanted, *_found(figure), answer)


def _section(result: Result) -> Iterator[str]:
    yield f"## {result.scenario}"
    yield ""
    if result.conditions:
        yield "; ".join(f"{name}: {value}" for name, value in result.conditions.items())
        yield ""
    if result.failed:
        yield f"Not measured: {result.failed}"
        yield ""
        return
    yield "| figure | median | from | to | rounds |"
    yield "|---|---|---|---|---|"
    for name, figure in result.figures.items():
        words = name.replace(",", " ").split()
        told = name if figure.unit in ("1", *words) else f"{name} ({figure.unit})"
        yield _row(told, *_found(figure), str(len(figure.rounds)))
    yield ""


def _found(figure: Figure) -> Iterator[str]:
    return map(_number, (figure.median, *figure.spread))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def reached(figure: Figure, wanted: str) -> bool:
    """Whether the median is as ``wanted`` says: ``≥ 0.8``, ``< 6``…"""
    sign, limit = wanted.split()
    median, bound = figure.median, float(limit)
    match sign:
        case "≥":
            return median >= bound
        case "≤":
            return median <= bound
        case "<":
            return median < bound
    raise ValueError(f"no such comparison: {wanted}")


def worsened(report: Report, last: Report) -> list[str]:
    """A sentence for each ratio and each cost in core time that is worse than in the ``last``
    report by more than the spread of both together. Of another machine's, nothing is said."""
    if report.machine.get("processors") != last.machine.get("processors"):
        return []
    before = {_same(result): result for result in last.results}
    found = []
    for result in report.results:
        old = before.get(_same(result))
        for name, figure in result.figures.items():
            if old and name in old.figures and _is_worse(figure, old.figures[name]):
                found.append(
                    f"{result.scenario}: {name} is {_number(figure.median)}, and was "
                    f"{_number(old.figures[name].median)} on {last.measured_at}"
                )
    return found


def _same(result: Result) -> tuple[str | None, ...]:
    """What two results have in common that can be compared."""
    return result.scenario, *map(result.conditions.get, _CONDITIONS)


def _is_worse(new: Figure, old: Figure) -> bool:
    better = _COMPARED.get(new.unit)
    if better is None or new.unit != old.unit:
        return False
    spread = sum(high - low for low, high in (new.spread, old.spread))
    return (old.median - new.median) * better > spread
