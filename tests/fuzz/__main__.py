"""``python -m tests.fuzz TARGET [SECONDS]``: the same targets under coverage-guided fuzzing.

Needs ``pip install atheris``, which the project itself does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["worker", "httpx", "ruamel"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in TARGETS:
        sys.exit(f"python -m tests.fuzz TARGET [SECONDS], where TARGET is: {', '.join(TARGETS)}")
    target = TARGETS[sys.argv[1]]
    seconds = sys.argv[2] if len(sys.argv) == 3 else "60"

    def run(data: bytes) -> None:  # atheris takes nothing for an answer
        target.run(data)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"{number}").write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={seconds}", "-max_len=20000", corpus],
            run,
        )
        atheris.Fuzz()


main()
