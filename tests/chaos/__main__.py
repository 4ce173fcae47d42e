"""The whole service under faults, on three brokers of Apache Kafka: ``python -m tests.chaos``.

Exits with 1 when anything that is promised does not hold, with a sentence for each; the report says
what was done and what was counted.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from pathlib import Path

from tests.apache_kafka import apache_kafka, unavailable
from tests.chaos.checks import Finding, findings
from tests.chaos.plan import FULL, SHORT, plan_of
from tests.chaos.report import report
from tests.chaos.run import Outcome, run
from tests.conftest import REPOSITORY

BROKERS = 3
DELIVERIES = ("at_least_once", "exactly_once")
FOLDER = REPOSITORY / "build" / "chaos"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the plan and of the requests")
    parser.add_argument("--short", action="store_true", help="in 2 minutes, with fewer faults")
    parser.add_argument("--delivery", choices=DELIVERIES, action="append", help="only this one")
    parser.add_argument("--report", type=Path, default=FOLDER / "report.md")
    given = parser.parse_args()
    if why := unavailable():
        print(why, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"seed {given.seed}; logs and report: {FOLDER}", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    scale = SHORT if given.short else FULL
    plan = plan_of(scale, given.seed)
    outcomes: dict[str, tuple[Outcome, list[Finding]]] = {}
    with apache_kafka(BROKERS) as cluster:
        for delivery in given.delivery or DELIVERIES:
            (folder := FOLDER / delivery).mkdir(parents=True)
            outcome = asyncio.run(
                run(
                    delivery=delivery,
                    scale=scale,
                    plan=plan,
                    seed=given.seed,
                    cluster=cluster,
                    folder=folder,
                )
            )
            outcomes[delivery] = outcome, findings(outcome.evidence)
    given.report.parent.mkdir(parents=True, exist_ok=True)
    text = report(list(outcomes.values()), scale=scale, seed=given.seed, brokers=BROKERS)
    given.report.write_text(text)
    return _told(outcomes)


def _told(outcomes: dict[str, tuple[Outcome, list[Finding]]]) -> int:
    """Prints what was counted; the exit code."""
    for delivery, (outcome, found) in outcomes.items():
        print(f"\n{delivery}, {outcome.seconds:.0f} s")
        for finding in found:
            print(f"  {'WRONG' if finding.wrong else 'ok   '} {finding.name}: {finding.counted}")
            for what in finding.wrong[:10]:
                print(f"        {what}")
    wrong = sum(bool(finding.wrong) for _, found in outcomes.values() for finding in found)
    if wrong:
        print(f"\n{wrong} checks failed", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
