"""Worker processes on one GPU, end to end: ``python -m worker.bench.gpu_service PROCESSES IMAGES
MODEL_RATE``; settings come from the environment. Prints a JSON object."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.bench.noop_worker import plain_policy
from worker.bench.scenarios import KILOBYTES
from worker.bench.service import flood, standing
from worker.logs import set_up_logs
from worker.settings import PREFIX


def gpu_service(processes: int, images: int, model_rate: float) -> dict[str, float]:
    """``model_rate`` is that of the model alone; 0 where it is not known."""
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    cores = len(os.sched_getaffinity(0))
    given[f"{PREFIX}DECODE__PROCESSES"] = str(max(1, cores // (2 * processes)))
    with TemporaryDirectory(prefix="bench-") as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_bytes(plain_policy(given[f"{PREFIX}MODEL__NAME"]))
        with standing(policy, kilobytes=KILOBYTES) as on:
            found = flood(on, range(images), environment=given, processes=processes)
    busy = sum(found.core_ms.values()) / 1000 * found.per_second / cores
    own = found.core_ms["worker"] + found.core_ms["decoders"]
    told = {
        "images/s": found.per_second,
        "core-ms/image": own,
        **{f"core-ms/image, {kind}": cost for kind, cost in found.core_ms.items()},
        "share of the cores that is busy": busy,
        "images/s where all cores are busy": found.per_second / busy,
        "s to ready": found.ready_seconds,
        **{f"MiB resident, {kind}": size for kind, size in found.resident_mib.items()},
    }
    return {**told, "of model alone": found.per_second / model_rate} if model_rate else told


if __name__ == "__main__":
    set_up_logs("warning", "auto")  # to standard error
    told = gpu_service(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    print(json.dumps(told))  # noqa: T201 - for who asks
