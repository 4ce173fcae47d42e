"""The image tower on a GPU: pinned memory, copies on a stream of their own, and CUDA graphs.

A graph is the tower's kernels for one batch size, recorded at load and launched at once. It can be
neither made nor changed later, so no request ever waits for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any, Final

import structlog
import torch
from torch import Tensor

from worker.canaries import canaries, worst_cosine
from worker.staged_engine import StagedEngine, batch_sizes
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Float32Rows

_log = structlog.get_logger(__name__)

#: What runs anew what was recorded, and the rows that this overwrites.
Recorded = tuple[Callable[[], object], Tensor]
#: Records what a function puts on a stream.
Recorder = Callable[[Callable[[], Tensor], Any], Recorded]

#: Between what a graph gives and what the same kernels give one by one, in another batch size. In
#: half precision batch sizes differ by more than in fp32, and a wrong graph by far more than that.
_MIN_COSINE: Final = 0.999
#: Before a recording, so that libraries have chosen their kernels and taken their memory.
_RUNS_FIRST: Final = 3


def cuda_graphs() -> Recorder:
    """They share their memory, the largest one's, as they run one after another."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor], stream: torch.cuda.Stream) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            rows = run()
        return graph.replay, rows

    return record


def cuda_engine(
    tower: ImageTower,
    *,
    most: int,
    lanes: int,
    graphs: Callable[[], Recorder] | None = cuda_graphs,
) -> StagedEngine:
    """``tower`` for batches of at most ``most`` rows, ``lanes`` of them under way at once. Where
    graphs cannot be made, or give other rows, kernels are launched one by one, with a warning in
    the log; without ``graphs``, they always are. Raises ``torch.OutOfMemoryError`` where not even
    the lanes fit."""
    model = _Model(tower, most)
    on = [_Lane(model, most) for _ in range(lanes)]
    if graphs:
        sizes = batch_sizes(most)
        try:
            model.record(sizes, graphs())
            engine = StagedEngine(on, most=most, sizes=sizes)
            images = canaries(*tower.preprocess.size)
            cosine = worst_cosine(engine, TorchEngine(tower), images, sizes)
            reason = "" if cosine >= _MIN_COSINE else f"cosine {cosine} to rows without them"
        except Exception as error:  # noqa: BLE001 - what cannot be recorded can be run
            reason = repr(error)[:300]
        if not reason:
            return engine
        # Not before the error is gone: its traceback holds what there is of the recording
        model.forget()
        _log.warning("cuda_graphs_failed_so_kernels_are_launched_one_by_one", reason=reason)
    return StagedEngine(on, most=most)


class _Model:
    """What the lanes share: the tower, its graphs, and the stream that all of it runs on."""

    def __init__(self, tower: ImageTower, most: int) -> None:
        self.tower = tower
        self.device = tower.mean.device
        self.on = torch.get_device_module(self.device)
        self.stream = self.new_stream()
        self.lock = Lock()  # what one batch puts on the stream stays together
        self._pixels = torch.zeros(
            most, *tower.preprocess.size, 3, dtype=torch.uint8, device=self.device
        )
        self._graphs: dict[int, Recorded] = {}
        with torch.inference_mode():
            self.dimension = tower(self._pixels[:1]).shape[1]
        self.on.synchronize(self.device)  # its streams do not wait for what came before them

    def new_stream(self) -> Any:
        return self.on.Stream(**({"device": self.device} if self.device.type == "cuda" else {}))

    def __call__(self, pixels: Tensor) -> Tensor:
        """On the current stream; the rows are overwritten by the next call on it."""
        if len(pixels) not in self._graphs:
            return self._one_by_one(pixels)
        replay, rows = self._graphs[len(pixels)]
        self._pixels[: len(pixels)].copy_(pixels)
        replay()
        return rows

    def record(self, sizes: Sequence[int], record: Recorder) -> None:
        for size in sorted(sizes, reverse=True):
            run = partial(self._one_by_one, self._pixels[:size])
            with torch.inference_mode():
                with self.on.stream(self.stream):
                    for _ in range(_RUNS_FIRST):
                        run()
                self.on.synchronize(self.device)
                self._graphs[size] = record(run, self.stream)

    def _one_by_one(self, pixels: Tensor) -> Tensor:
        rows: Tensor = self.tower(pixels)
        return rows

    def forget(self) -> None:
        self._graphs.clear()
        # A recording that broke off counts as under way, and then torch may refuse. It does nothing
        # where CUDA was never used
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


class _Lane:
    def __init__(self, model: _Model, most: int) -> None:
        self._model = model
        on_cuda = model.device.type == "cuda"
        size = most, *model.tower.preprocess.size, 3
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=on_cuda)
        self._there = torch.empty(size, dtype=torch.uint8, device=model.device)
        self._back = torch.empty(most, model.dimension, pin_memory=on_cuda)
        self._copies = model.new_stream()
        self._copied = model.on.Event()
        # Who waits for it sleeps: decoders need the core
        self._done = model.on.Event(blocking=True) if on_cuda else model.on.Event()
        self.pixels = self._host.numpy()

    def start(self, rows: int) -> None:
        model, on = self._model, self._model.on
        pixels = self._there[:rows]
        with torch.inference_mode():
            with on.stream(self._copies):
                pixels.copy_(self._host[:rows], non_blocking=True)
                self._copied.record()
            try:
                with model.lock, on.stream(model.stream):
                    model.stream.wait_event(self._copied)
                    self._back[:rows].copy_(model(pixels), non_blocking=True)
                    self._done.record()
            except BaseException:
                self._copied.synchronize()
                raise
        self._rows = rows

    def finish(self) -> Float32Rows:
        self._done.synchronize()
        rows: Float32Rows = self._back[: self._rows].numpy()
        return rows
