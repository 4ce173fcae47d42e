"""The report of a run, in Markdown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from tests.chaos.checks import Evidence, Finding
from tests.chaos.plan import Scale
from tests.chaos.run import Outcome

T = TypeVar("T", bound=str | None)

_SHOWN = 10  # of what is wrong with one check


def report(
    outcomes: Iterable[tuple[Outcome, Sequence[Finding]]], *, scale: Scale, seed: int, brokers: int
) -> str:
    workers = f"{scale.slots} workers with a deterministic encoder"
    workers += " and one with the pocket model" if scale.pocket else ""
    told = f"Seed {seed}, {brokers} brokers of Apache Kafka, Redis, {workers}; in each mode "
    told += f"{scale.requests} records in {scale.seconds:.0f} s."
    parts = ["# Chaos", told]
    parts += [_of_mode(outcome, found) for outcome, found in outcomes]
    return "\n\n".join(parts) + "\n"


def _of_mode(outcome: Outcome, found: Sequence[Finding]) -> str:
    run = outcome.evidence
    return "\n\n".join(
        [
            f"## {outcome.delivery}",
            f"{outcome.seconds:.0f} s in all; lag 0 {outcome.settle_seconds:.0f} s after the last "
            "fault.",
            _table(("check", "counted", "wrong"), [_row(each) for each in found]),
            *(_complaints(each) for each in found if each.wrong),
            "### Counted",
            _table(("what", "how many"), counts(run, outcome.started)),
            "### Done",
            _table(
                ("fault", "planned", "done"),
                [
                    (kind, str(count), str(run.done.get(kind, 0)))
                    for kind, count in sorted(run.planned.items())
                ],
            ),
            "### Timeline",
            "Seconds from the start of the plan; a fault waits for the one before it on the same "
            "thing, and a kill until its worker is ready.",
            _table(
                ("planned", "begun", "over", "what", "of which"),
                [
                    (
                        f"{each.fault.at_seconds:.1f}",
                        f"{each.begun:.1f}",
                        f"{each.ended:.1f}",
                        each.fault.kind.value,
                        str(each.fault.target),
                    )
                    for each in sorted(outcome.timeline, key=lambda each: each.begun)
                ],
            ),
        ]
    )


def counts(run: Evidence, started: int) -> list[tuple[str, str]]:
    """What there was, good or bad."""
    ids = Counter(said.verdict_id for said in run.said)
    answers = Counter(said.request_id for said in run.said if said.first)
    last = {said.request_id: said for said in run.said}
    ways = Counter(exit.how for exit in run.exits)
    rows: list[tuple[str, object]] = [
        ("records asked", len(run.asked)),
        ("… of them malformed", sum(asked.request_id is None for asked in run.asked)),
        ("verdicts", len(run.said)),
        ("… with an id that came before", sum(ids.values()) - len(ids)),
        ("… superseding another", sum(not said.first for said in run.said)),
        (
            "requests with more than one verdict that supersedes none",
            sum(count > 1 for count in answers.values()),
        ),
        ("records on the retry topic", len(run.retried)),
        *_told("verdicts by decision", Counter(said.decision for said in run.said)),
        *_told("verdicts by model", Counter(said.model for said in run.said)),
        *_told("last verdicts by error", Counter(said.error for said in last.values())),
        *_told("dead letters by reason", Counter(dead.reason for dead in run.dead)),
        ("workers started", started),
        *_told("workers ended", ways),
    ]
    return [(name, str(count)) for name, count in rows]


def _told(name: str, counted: Mapping[T, int]) -> Iterable[tuple[str, int]]:
    for value, count in sorted(counted.items(), key=lambda item: -item[1]):
        yield f"{name}: {value or 'none'}", count


def _row(finding: Finding) -> tuple[str, str, str]:
    return finding.name, finding.counted, f"**{len(finding.wrong)}**" if finding.wrong else "0"


def _complaints(finding: Finding) -> str:
    lines = [f"Wrong with “{finding.name}”:", ""]
    lines += [f"- {what}" for what in finding.wrong[:_SHOWN]]
    if len(finding.wrong) > _SHOWN:
        lines.append(f"- … and {len(finding.wrong) - _SHOWN} more")
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
