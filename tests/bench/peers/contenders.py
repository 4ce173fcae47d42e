"""Those that are compared, and what one round of each takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.peers.environments import Unavailable, python_of
from tests.bench.peers.turns import Turn, turn
from worker.bench.image_server import image_server, path
from worker.bench.noop_worker import plain_policy
from worker.bench.photos import photos
from worker.bench.scenarios import KILOBYTES
from worker.bench.service import flood, standing
from worker.bench.weights import bench_folder, random_checkpoint
from worker.settings import PREFIX

ARCHITECTURE = "ViT-B-32"
_INSIDE = Path(__file__).parent / "inside"
_OURS = f"{ARCHITECTURE}-random"


@dataclass(frozen=True, slots=True)
class Contender:
    """``once`` makes one round with so many images, and raises ``Unavailable``."""

    name: str
    once: Callable[[int], Turn]
    scenario: str
    conditions: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False


def _peer(script: str, environment: str | None, requirements: tuple[str, ...], images: int) -> Turn:
    """``environment`` is None for what runs in our own."""
    python = python_of(environment, requirements) if environment else sys.executable
    checkpoint = random_checkpoint(ARCHITECTURE, bench_folder())
    with (
        TemporaryDirectory(prefix="bench-") as folder,
        image_server(images, kilobytes=KILOBYTES) as port,
    ):
        for number, body in enumerate(photos(images, KILOBYTES)):
            (Path(folder) / f"{number:05}.jpg").write_bytes(body)
        urls = (f"http://127.0.0.1:{port}{path(number)}" for number in range(images))
        return turn([str(python), str(_INSIDE / script), str(checkpoint), folder, *urls], images)


def _service(engine: str, images: int) -> Turn:
    if engine == "onnx" and not find_spec("onnxruntime"):
        raise Unavailable("onnxruntime is not installed; `make test-onnx` installs it")
    model = {
        "NAME": _OURS,
        "CHECKPOINT": str(random_checkpoint(ARCHITECTURE, bench_folder())),
        "CONFIG": ARCHITECTURE,
        "ENGINE": engine,
        "DEVICE": "cpu",
    }
    with TemporaryDirectory(prefix="bench-") as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_bytes(plain_policy(_OURS))
        with standing(policy, images=images, kilobytes=KILOBYTES) as on:
            environment = {f"{PREFIX}MODEL__{key}": value for key, value in model.items()}
            found = flood(on, range(images), environment=environment)
    figures = {
        "images/s": found.per_second,
        "core-ms/image": found.core_ms["worker"] + found.core_ms["decoders"],
        "MiB resident": sum(found.resident_mib.values()),
    }
    return Turn(figures, {})


def _of(
    name: str, script: str, how: str, environment: str | None = None, *requirements: str
) -> Contender:
    once = partial(_peer, script, environment, requirements)
    return Contender(name, once, f"peer: {name}", {"how": how})


def _ours(engine: str) -> Contender:
    how = "request on the topic to verdict, images by URL"
    return Contender(
        f"imagewarden {engine}",
        partial(_service, engine),
        "end-to-end",
        {"engine": engine, "how": how},
        ours=True,
    )


CONTENDERS = (
    _of("plain loop", "plain.py", "open_clip, files, batch 1"),
    _of(
        "clip-retrieval",
        "retrieval.py",
        "its inference, files, batches of 32",
        "clip-retrieval",
        # The CLIP package it stands on imports pkg_resources and does not say so
        *("clip-retrieval==2.45.0", "setuptools<81"),
    ),
    _of(
        "infinity",
        "infinity.py",
        "its server, 48 requests of a URL each at once",
        "infinity",
        # It fetches with aiohttp and does not say so
        *("infinity-emb[server,torch,vision]==0.0.78", "aiohttp"),
    ),
    _of(
        "clip-as-service",
        "as_service.py",
        "its server and its client, 64 URLs in a request, batches of 32",
        "clip-as-service",
        *("clip-server==0.8.3", "safetensors", "setuptools<81"),
    ),
    _ours("torch"),
    _ours("onnx"),
)
