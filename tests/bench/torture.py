"""What becomes of files that were made to hurt decoders: ``python -m tests.bench.torture FOLDER…``.

Prints a Markdown table: how many files of each kind had which outcome, how long the slowest took,
and how much memory a decoder process had in use at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.decode import DecoderPool
from worker.errors import Unexaminable
from worker.image_formats import format_of
from worker.types import Decoded, FramePlan, PreprocessSpec

SPEC = PreprocessSpec(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAN = FramePlan(views="tiles")

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Result:
    """``resident_bytes`` is the most of the process at once, the interpreter with it; none where
    the process ended."""

    path: Path
    outcome: Decoded | Unexaminable
    seconds: float
    resident_bytes: int | None

    @property
    def kind(self) -> str:
        try:
            return format_of(self.path.read_bytes())
        except Unexaminable:
            return "others"

    @property
    def name(self) -> str:
        return "decoded" if isinstance(self.outcome, Decoded) else str(self.outcome.code)


def files_in(folders: Iterable[Path]) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


async def measured(files: Sequence[Path]) -> list[Result]:
    """Each file by itself, with the limits of the service."""
    pool = DecoderPool(processes=1, timeout_seconds=TIMEOUT_SECONDS, memory_bytes=MEMORY_BYTES)
    try:
        await pool.start()
        return [await _measured(pool, file) for file in files]
    finally:
        await pool.close()


async def _measured(pool: DecoderPool, file: Path) -> Result:
    (process,) = _decoders()
    _forget_resident(process.pid)
    body = await asyncio.to_thread(file.read_bytes)
    outcome: Decoded | Unexaminable
    begun = time.perf_counter()
    try:
        outcome = await pool.decode(body, hashlib.sha256(body).hexdigest(), SPEC, PLAN)
    except Unexaminable as rejected:
        outcome = rejected
    seconds = time.perf_counter() - begun
    return Result(file, outcome, seconds, _resident_at_most(process.pid))


def _decoders() -> list[psutil.Process]:
    processes = psutil.Process().children()
    return [process for process in processes if "decoder_process" in " ".join(process.cmdline())]


def _forget_resident(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets the high-water mark


def _resident_at_most(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None


def table(results: Sequence[Result]) -> str:
    counts = Counter((result.kind, result.name) for result in results)
    totals = Counter(result.name for result in results)
    kinds = sorted({kind for kind, _ in counts}, key=lambda kind: (kind == "others", kind))
    names = sorted(totals, key=lambda name: (name != "decoded", name))
    lines = [
        ["kind", "files", *names],
        ["---", *["--:"] * (len(names) + 1)],
        *(
            [kind, str(sum(counts[kind, n] for n in names)), *(str(counts[kind, n]) for n in names)]
            for kind in kinds
        ),
        ["all", str(len(results)), *(str(totals[name]) for name in names)],
    ]
    slowest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.resident_bytes or 0)
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"Slowest: {slowest.seconds:.2f} s, {slowest.path.name}, {slowest.name}.",
            f"Most memory of a decoder process: {(largest.resident_bytes or 0) / 2**20:.0f} MiB, "
            f"{largest.path.name}, {largest.name}.",
        ]
    )


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    files = files_in(folders)
    if not files:
        sys.exit("python -m tests.bench.torture FOLDER…: folders with files to decode")
    print(table(asyncio.run(measured(files))))


if __name__ == "__main__":
    main()
