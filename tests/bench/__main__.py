"""What the service adds to its model: ``python -m tests.bench``.

Everything runs on this machine and shares its cores: broker, cache, image server, worker with its
decoders, and this client. Each measurement takes fresh processes, so every cache is empty; the
model alone and the whole service take turns, so that a change of the machine's pace meets both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.bench.images import image_server, path
from worker.demo.image_server import ImageServer
from worker.demo.stage import Exchange, Stage, create_topics, worker_process
from worker.embedded import embedded_broker, embedded_redis
from worker.schema import Verdict
from worker.settings import KafkaSettings

_POLICY = Path(__file__).resolve().parents[2] / "policies" / "pocket.yaml"
_LIBRARIES = ("torch", "open_clip_torch", "numpy", "pillow", "kafka-python", "httpx", "redis")
_RESIDENT_BYTES = 1.5 * 2**30
_SILENCE_SECONDS = 60.0  # without any verdict; then the rest is lost

#: Between these shares of the verdicts the rate is steady: every stage has work from the first on,
#: and still has until the second.
_STEADY = (0.1, 0.9)


@dataclass(frozen=True)
class Run:
    """What came of some requests. CPU times are of the steady part, by kind of process."""

    requests: int
    images: int
    examined: int
    images_per_second: float
    cpu_ms_per_image: Mapping[str, float]
    resident_warm_bytes: Mapping[str, int]
    resident_bytes: Mapping[str, int]


# ---------------------------------------------------------------- what runs


@contextmanager
def _stage(images: int, policy: Path) -> Iterator[Stage]:
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        broker = parts.enter_context(embedded_broker())
        asyncio.run(create_topics(broker, KafkaSettings()))
        server = ImageServer({})
        server.port = parts.enter_context(image_server(images))
        redis = parts.enter_context(embedded_redis())
        yield Stage(broker, redis, server, policy, folder)


def _kinds(worker: int) -> dict[str, list[psutil.Process]]:
    kinds: dict[str, list[psutil.Process]] = {
        "worker": [psutil.Process(worker)],
        "decoders": psutil.Process(worker).children(),
        "client": [psutil.Process()],
    }
    signs = {"tansu": "broker", "valkey": "redis", "tests.bench.images": "image server"}
    for process in psutil.Process().children():
        command = " ".join(process.cmdline())
        kinds |= {kind: [process] for sign, kind in signs.items() if sign in command}
    return kinds


def _cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# ---------------------------------------------------------------- measurements


def model_alone(images: int, policy: Path) -> float:
    """Images a second."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.bench.model", str(images)],
        env={**os.environ, "IMAGEWARDEN_POLICIES": str(policy)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(told.stdout)["images_per_second"])


def end_to_end(requests: int, images: int, policy: Path) -> Run:
    """Each image equally often, in random order. Raises ``TimeoutError`` if verdicts are lost."""
    with (
        _stage(images, policy) as on,
        worker_process(on, settings={"IMAGEWARDEN_HTTP__PORT": "0"}) as worker,
    ):
        run = asyncio.run(_ask(on, requests, images, _kinds(worker.process.pid)))
        if code := worker.stop():
            raise worker.failed(f"the worker ended with {code}")
        return run


async def _ask(
    on: Stage, requests: int, images: int, kinds: Mapping[str, Sequence[psutil.Process]]
) -> Run:
    numbers = [number % images for number in range(requests)]
    random.Random(0).shuffle(numbers)
    records = {
        f"{position}": _request(f"{position}", on.images.url(path(number)))
        for position, number in enumerate(numbers)
    }
    first, last = (round(requests * share) for share in _STEADY)
    marks: list[tuple[float, dict[str, float]]] = []
    resident: list[dict[str, int]] = []
    verdicts: dict[str, Verdict] = {}
    async with Exchange(on) as exchange:
        publishing = asyncio.create_task(exchange.publish(records))
        while len(verdicts) < requests:
            async with asyncio.timeout(_SILENCE_SECONDS):
                name, answer = await exchange.answer()
            assert isinstance(answer, Verdict), f"a dead letter came of {name}: {answer}"
            assert name in records and name not in verdicts, f"{name} was answered twice"
            verdicts[name] = answer
            if len(verdicts) in (first, last):
                cpu = {kind: _cpu_seconds(of) for kind, of in kinds.items()}
                marks.append((time.perf_counter(), cpu))
            if len(verdicts) in (min(images, requests // 2), requests):
                resident.append(_resident_bytes(kinds))
        await publishing
    (began, before), (ended, after) = marks
    return Run(
        requests=requests,
        images=images,
        examined=sum(verdict.status == "ok" for verdict in verdicts.values()),
        images_per_second=(last - first) / (ended - began),
        cpu_ms_per_image={
            kind: 1000 * (after[kind] - before[kind]) / (last - first) for kind in kinds
        },
        resident_warm_bytes=resident[0],
        resident_bytes=resident[-1],
    )


def _resident_bytes(kinds: Mapping[str, Sequence[psutil.Process]]) -> dict[str, int]:
    return {
        kind: sum(process.memory_info().rss for process in kinds[kind])
        for kind in ("worker", "decoders")
    }


def _request(name: str, url: str) -> bytes:
    return json.dumps(
        {"schema_version": 1, "request_id": name, "item_id": name, "url": url}
    ).encode()


# ---------------------------------------------------------------- the report


def _machine() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} × {cpu}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "commit": commit.stdout.strip() or "unknown",
    }


def _spread(values: Sequence[float], digits: int) -> str:
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _mebibytes(resident: Mapping[str, int]) -> str:
    told = ", ".join(f"{kind} {size / 2**20:.0f}" for kind, size in resident.items())
    return f"{sum(resident.values()) / 2**20:.0f} MiB ({told})"


def _table(alone: Sequence[float], whole: Sequence[Run], long: Run) -> str:
    rates = [run.images_per_second for run in whole]
    rows = {
        "model alone, images/s": _spread(alone, 1),
        "end to end, images/s": _spread(rates, 1),
        "ratio": _spread([b / a for a, b in zip(alone, rates, strict=True)], 3),
        **{
            f"CPU ms/image, {kind}": _spread([run.cpu_ms_per_image[kind] for run in whole], 2)
            for kind in whole[0].cpu_ms_per_image
        },
        f"{long.requests} requests, {long.images} images": f"{long.examined} verdicts ok, "
        f"{long.requests - long.examined} not, none lost; {long.images_per_second:.1f} requests/s",
        "resident, warm": _mebibytes(long.resident_warm_bytes),
        "resident, at the end": _mebibytes(long.resident_bytes),
        **_machine(),
    }
    lines = ["| what | median (from to) |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: counts, hardly a rate")
    parser.add_argument("--rounds", type=int, help="of model alone and end to end")
    parser.add_argument("--policy", type=Path, default=_POLICY)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else 3)
    images, requests = (80, 400) if asked.quick else (400, 2000)

    alone: list[float] = []
    whole: list[Run] = []
    for _ in range(rounds):
        alone.append(model_alone(images if asked.quick else 2 * images, asked.policy))
        whole.append(end_to_end(images, images, asked.policy))
    long = end_to_end(requests, images, asked.policy)
    print(_table(alone, whole, long))
    if asked.json:
        figures = {
            "machine": _machine(),
            "model_alone_images_per_second": alone,
            "end_to_end": [asdict(run) for run in whole],
            "repeated": asdict(long),
        }
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    for run in (*whole, long):
        assert run.examined == run.requests, f"{run.requests - run.examined} were not examined"
        assert sum(run.resident_bytes.values()) < _RESIDENT_BYTES, "more than 1.5 GiB resident"


if __name__ == "__main__":
    main()
