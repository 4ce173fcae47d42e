"""What is measured on a GPU, step by step, the most wanted first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from worker.bench.weights import bench_folder

_PREFIX = "IMAGEWARDEN_"
_WANTED_RATE = "≥ 4000"  # of ViT-L-14 in bf16, on an H200
_GUARD = "≥ 0.999"


@dataclass(frozen=True, slots=True)
class Step:
    """``python -m MODULE ARGUMENTS``, which prints figures; ``{model rate}`` among the
    arguments is what the step "model" found, or 0. Past ``limit_seconds`` it is ended."""

    scenario: str
    module: str
    arguments: tuple[str, ...]
    limit_seconds: float
    conditions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, str] = field(default_factory=dict)


MODEL_RATE = "{model rate}"


def steps(device: str, *, quick: bool) -> list[Step]:
    """Their time limits are for what hangs: together they are longer than the whole may take."""
    large = "ViT-S-32-alt" if quick else "ViT-L-14"
    small = large if quick else "ViT-B-32"
    batches, few = ("1,3", "2") if quick else ("1,2,4,8,16,32,64,128,256", "1,16,64,256")
    seconds = "0.01" if quick else "0.1"
    images, flooded = ("64", "60") if quick else ("12000", "8000")
    precision = "fp32" if quick else "bf16"
    whole = {"model": large, "engine": "torch", "device": device, "precision": precision}
    whole["weights"] = "random"
    worker = {
        "MODEL__NAME": large,
        "MODEL__CHECKPOINT": str(bench_folder() / f"{large}.safetensors"),
        "MODEL__CONFIG": large,
        "MODEL__DEVICE": device,
        "MODEL__ENGINE": "torch",
        "MODEL__PRECISION": precision,
        "MODEL__BATCH_ROWS": "4" if quick else "128",
        # room for the batches in the model and those that form meanwhile
        "WORK__IMAGES": "512",
        "WORK__IN_FLIGHT": "1024",
    }
    environment = {f"{_PREFIX}{name}": value for name, value in worker.items()}

    def by_path(architecture: str, precision: str) -> Step:
        sizes = batches if precision == "bf16" else few
        return Step(
            "image tower",
            "worker.bench.gpu_model",
            ("rates", device, architecture, precision, sizes, seconds),
            60,
            {"model": architecture, "device": device, "precision": precision, "weights": "random"},
            wanted={
                f"worst cosine to fp32, {path}": _GUARD
                for path in ("eager", "eager, channels first", "graphs")
            },
        )

    def end_to_end(processes: int) -> Step:
        return Step(
            "end-to-end",
            "worker.bench.gpu_service",
            (f"{processes}", flooded, MODEL_RATE),
            110,
            {**whole, "worker processes": f"{processes}"},
            environment,
            {"of model alone": "≥ 0.9"},
        )

    def decoding(kilobytes: int) -> Step:
        return Step(
            "GPU decode",
            "worker.bench.gpu_decode",
            (device, f"{kilobytes}", "4" if quick else "512"),
            45,
            {"device": device, "photos": f"about {kilobytes} KB"},
            wanted={"worst cosine to the worker's decoder": _GUARD},
        )

    found = [
        Step("weights", "worker.bench.gpu_model", ("weights", large), 90, {"model": large}),
        Step(
            "model",
            "worker.bench.alone",
            ("model", images),
            90,
            {**whole, "rows": worker["MODEL__BATCH_ROWS"]},
            environment,
            {"images/s": _WANTED_RATE},
        ),
        *(end_to_end(processes) for processes in ((1,) if quick else (1, 2, 4))),
        by_path(large, "bf16"),
        Step(
            "host to rows",
            "worker.bench.gpu_model",
            ("copies", device, large, "bf16", few if quick else "64,128,256", seconds),
            60,
            {"model": large, "device": device, "precision": "bf16", "weights": "random"},
        ),
        Step(
            "trained weights",
            "worker.bench.gpu_model",
            ("trained", device),
            60,
            {"model": "pocket", "device": device},
            wanted={f"worst cosine to fp32, {name}": _GUARD for name in ("bf16", "fp16")},
        ),
        *(decoding(kilobytes) for kilobytes in ((20,) if quick else (50, 20, 200, 1000))),
    ]
    if quick:  # what is found in a moment is no measurement
        return [replace(step, wanted={}) for step in found]
    return [
        *found,
        by_path(large, "fp16"),
        by_path(large, "fp32"),
        by_path(small, "bf16"),
        Step(
            "torch.compile",
            "worker.bench.gpu_model",
            ("compiled", device, large, "bf16", "64", seconds),
            120,
            {"model": large, "device": device, "precision": "bf16", "weights": "random"},
        ),
        by_path(small, "fp16"),
        by_path(small, "fp32"),
    ]
