"""The service beside others at the same work: ``python -m tests.bench.peers``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.bench.peers.comparison import PHOTOS, compare
from tests.bench.peers.contenders import CONTENDERS
from worker.bench.measure import report_of
from worker.bench.report import markdown
from worker.bench.results import write_report

LEAST = 128  # two of the largest batches, so that there is a steady part


def main() -> None:
    names = [one.name for one in CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=PHOTOS, help=f"in each turn; {LEAST} or more")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=str(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args()
    if asked.images < LEAST:
        parser.error(f"{asked.images} images are too few; give {LEAST} or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what it started
    chosen = [one for one in CONTENDERS if one.name in (asked.only or names)]
    results = compare(chosen, asked.rounds, asked.images, lambda told: print(told, file=sys.stderr))
    report = report_of(results)
    if asked.json:
        write_report(report, asked.json)
    print(markdown(report), end="")


if __name__ == "__main__":
    main()
