"""The image tower on a GPU, by every path: ``python -m worker.bench.gpu_model PART ARGUMENTS``.

Prints JSON objects, one a line, each as soon as it is known: figures by name (rates of three
rounds), and as text what had to be left out, and why. Weights are random, unless it says otherwise.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.bench.photos import photos_at
from worker.bench.weights import bench_folder, random_checkpoint
from worker.canaries import worst_cosine
from worker.cuda_engine import cuda_engine, cuda_graphs
from worker.embed import DTYPES, load_encoder
from worker.logs import set_up_logs
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Float32Rows, Pixels

Told = dict[str, float | list[float] | str]

_ROUNDS = 3
_NEEDS_GPU = "left out, it needs a GPU"
_PHOTOS = 20  # that precisions and paths are compared on


def weights(architecture: str) -> Iterator[Told]:
    """Made once, for the parts that load a worker."""
    began = time.perf_counter()
    random_checkpoint(architecture, bench_folder())
    yield {"s to make the weights": time.perf_counter() - began}


def rates(
    device: str, architecture: str, precision: str, batches: str, seconds: str
) -> Iterator[Told]:
    """Images/s on pixels that are there already, and how far each path's rows are from those in
    fp32 without any of them."""
    reference = _tower(architecture, device)
    tower = _in(precision, reference)
    photos = photos_at(tower.preprocess.size, _PHOTOS)
    for path, (run, around) in _paths(tower).items():
        try:
            with torch.inference_mode(), around():
                for batch in map(int, batches.split(",")):
                    pixels = _there(photos, batch, device)
                    yield {f"images/s, {path}, batch {batch}": _rates(run(pixels), batch, seconds)}
                engine = (
                    TorchEngine(tower)
                    if not path.startswith("graphs")
                    else cuda_engine(tower, most=_PHOTOS, lanes=1)
                )
                worst = worst_cosine(engine, TorchEngine(reference), photos, [len(photos)])
            yield {f"worst cosine to fp32, {path}": worst}
        except Exception as error:  # noqa: BLE001 - the other paths are measured all the same
            yield {path: f"failed: {error!r}"[:300]}
    if not device.startswith("cuda"):
        yield {"graphs": _NEEDS_GPU}


def compiled(
    device: str, architecture: str, precision: str, batch: str, seconds: str
) -> Iterator[Told]:
    """As above, by torch.compile for one batch size; it takes a minute and a C compiler."""
    tower = _in(precision, _tower(architecture, device))
    pixels = _there(photos_at(tower.preprocess.size, _PHOTOS), int(batch), device)
    for mode in ("default", "reduce-overhead"):
        with torch.inference_mode():
            began = time.perf_counter()
            run = torch.compile(tower, mode=mode, dynamic=False)
            run(pixels)
            _wait()
            yield {f"s to compile, {mode}": time.perf_counter() - began}
            found = _rates(partial(run, pixels), int(batch), seconds)
            yield {f"images/s, {mode}, batch {batch}": found}


def copies(
    device: str, architecture: str, precision: str, batches: str, seconds: str
) -> Iterator[Told]:
    """Images/s from pixels in the host's memory to rows in it, by who copies them and how."""
    tower = _in(precision, _tower(architecture, device))
    photos = photos_at(tower.preprocess.size, _PHOTOS)
    for most in map(int, batches.split(",")):
        batch = photos[np.arange(most) % len(photos)]
        lanes = partial(cuda_engine, tower, most=most)
        ways: dict[str, tuple[Callable[[Pixels], Float32Rows], int]] = {
            "as it lies": (TorchEngine(tower), 1),
            "pinned, one batch at a time": (lanes(lanes=1, graphs=None), 1),
            "pinned, the next one copied meanwhile": (lanes(lanes=2, graphs=None), 2),
        }
        if device.startswith("cuda"):
            ways["the same, graphs"] = (lanes(lanes=2), 2)
            ways["the same, graphs, three batches"] = (lanes(lanes=3), 3)
        for way, (engine, threads) in ways.items():
            batches_in_all = [batch] * (4 * threads)
            with ThreadPoolExecutor(threads) as pool:
                run = partial(_all, pool, engine, batches_in_all)
                found = _rates(run, len(batches_in_all) * most, seconds)
            yield {f"images/s, {way}, batch {most}": found}
    if not device.startswith("cuda"):
        yield {"graphs": _NEEDS_GPU}


def trained(device: str) -> Iterator[Told]:
    """Weights that were trained tell photos apart, as random ones do not: pocket's."""
    plain = load_encoder("pocket", device=device, precision="fp32")
    photos = photos_at(plain.info.preprocess.size, _PHOTOS)
    for precision in ("bf16", "fp16"):
        encoder = load_encoder("pocket", device=device, precision=precision)
        worst = worst_cosine(encoder.encode_images, plain.encode_images, photos, [len(photos)])
        yield {f"worst cosine to fp32, {precision}": worst}


def _all(
    pool: ThreadPoolExecutor, engine: Callable[[Pixels], Float32Rows], batches: Sequence[Pixels]
) -> None:
    list(pool.map(engine, batches))


#: What gives a function that runs the tower on pixels, and what must be around it.
_Path = tuple[Callable[[Tensor], Callable[[], object]], Callable[[], AbstractContextManager[None]]]


def _paths(tower: ImageTower) -> Mapping[str, _Path]:
    def eager(pixels: Tensor) -> Callable[[], object]:
        return partial(_rows, tower, pixels)

    def channels_first(pixels: Tensor) -> Callable[[], object]:
        other = copy.deepcopy(tower)
        other.model.visual.to(memory_format=torch.contiguous_format)
        return partial(_rows, other, pixels)

    def graphs(pixels: Tensor) -> Callable[[], object]:
        run = partial(_rows, tower, pixels)
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        replay, _ = cuda_graphs()(run, torch.cuda.Stream(pixels.device))
        return replay

    found: dict[str, _Path] = {
        "eager": (eager, nullcontext),
        "eager, no fused attention": (eager, partial(sdpa_kernel, SDPBackend.MATH)),
        "eager, attention without its fast path": (eager, _without_fast_path),
        "eager, channels first": (channels_first, nullcontext),
    }
    if tower.mean.device.type == "cuda":
        found["graphs"] = (graphs, nullcontext)
        found["graphs, attention without its fast path"] = (graphs, _without_fast_path)
    return found


def _tower(architecture: str, device: str) -> ImageTower:
    torch.manual_seed(0)
    with torch.device(device):  # random numbers come faster there
        model = open_clip.create_model(architecture, device=device)
    return ImageTower(model.eval())


def _in(precision: str, tower: ImageTower) -> ImageTower:
    return ImageTower(copy.deepcopy(tower.model).to(DTYPES[precision]))


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """MultiheadAttention then leaves it to scaled_dot_product_attention, which chooses among more
    kernels than the fast path knows."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _rows(tower: ImageTower, pixels: Tensor) -> Tensor:
    rows: Tensor = tower(pixels)
    return rows


def _there(photos: Pixels, batch: int, device: str) -> Tensor:
    return torch.from_numpy(photos[np.arange(batch) % len(photos)]).to(device)


def _rates(run: Callable[[], object], images: int, seconds: str) -> list[float]:
    """Images/s of each round, each of so many seconds, after two calls that do not count."""
    found: list[float] = []
    run()
    for _ in range(_ROUNDS + 1):
        calls = max(1, round(float(seconds) * found[-1] / images)) if found else 1
        _wait()
        began = time.perf_counter()
        for _ in range(calls):
            run()
        _wait()
        found.append(calls * images / (time.perf_counter() - began))
    return found[1:]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


_PARTS: Mapping[str, Callable[..., Iterator[Told]]] = {
    "weights": weights,
    "rates": rates,
    "compiled": compiled,
    "copies": copies,
    "trained": trained,
}


if __name__ == "__main__":
    set_up_logs("warning", "auto")  # to standard error
    part, *given = sys.argv[1:]
    for told in _PARTS[part](*given):
        print(json.dumps(told), flush=True)  # noqa: T201 - for who asks
