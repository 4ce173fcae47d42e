"""open_clip models as an ``Encoder``: put on a device, warm up, encode.

An engine turns images into embeddings, torch or ONNX Runtime; texts are torch's. This module, the
engines', ``weights``, ``pocket``, ``minilm`` and ``uncompiled`` alone import torch.

Threads: ``encode_images`` and ``encode_texts`` may be called from any threads at once. The
model works on the encoder's own threads, its streams, which share the cores evenly; a call for
many rows lets others in between its chunks. On a CPU there are two, so that one computes while the
other waits for its team: on two cores each is alone on its core, waits for nobody, and decoders
beside it cost their own time and no more. No more than two, because OpenMP keeps a team for every
thread that ever called it, and teams larger than the machine together get less done. On a GPU there
are two as well: one batch is copied there while the other one runs.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

# OpenMP reads this once, when torch brings it in. Threads that wait for each other spin by default,
# and so take the cores from whom they wait for as soon as anything else runs: on two busy cores, 5
# images a second instead of 50 and more. Sleeping costs a tenth or two while nothing else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from worker.cuda_engine import cuda_engine
from worker.errors import DeviceOutOfMemory, Misconfigured
from worker.malloc import keep_freed_memory
from worker.packed_linears import pack_linears
from worker.pocket import fold_batch_norms, pad_within_convolutions, pointwise_by_onednn
from worker.torch_engine import ImageEngine, ImageTower, TorchEngine, preprocess_of
from worker.types import DeviceMemory, Float32Rows, ModelInfo, Pixels
from worker.weights import POCKET, Tokenize, build_model, first_line, weights_digest

Precision = Literal["fp32", "bf16", "fp16"]
Engine = Literal["torch", "onnx"]

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_TEXTS_AT_ONCE: Final = 64
_STREAMS: Final = {"cpu": 2, "cuda": 2}
_BATCH_ON_CUDA: Final = 64

Rows = TypeVar("Rows", Pixels, Sequence[str])
Result = TypeVar("Result")


class Streams:
    """At most ``count`` threads that torch works on, with ``cores`` shared among them; by itself,
    all cores that torch would use."""

    def __init__(self, count: int, cores: int | None) -> None:
        self.cores = cores or torch.get_num_threads()
        self.count = min(count, self.cores)
        self.threads = ThreadPoolExecutor(
            self.count,
            thread_name_prefix="torch",
            # OpenMP's number is the calling thread's own
            initializer=torch.set_num_threads,
            initargs=(self.cores // self.count,),
        )

    def on_all_cores(self, call: Callable[[], Result]) -> Result:
        """While nothing else computes; on a thread of its own, because OpenMP's team ends with
        it."""
        with ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(self.cores,)
        ) as alone:
            return alone.submit(call).result()


class OpenClipEncoder:
    """A model on its device. ``load_encoder`` builds it.

    ``preferred_batch`` is the number of rows that a stream is fastest with; larger calls are cut
    into chunks of it. Rows that are not finite are returned as they are.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenize: Tokenize,
        images: ImageEngine,
        *,
        weights_digest: str,
        precision: Precision,
        streams: Streams,
    ) -> None:
        """``model`` in evaluation mode, on its device and in its precision, and what runs its image
        tower."""
        self.engine = images.name
        self.preferred_batch = images.preferred_batch
        self._images = images
        self._streams = streams
        self._tokenize = tokenize
        self._model = model
        self._info = ModelInfo(
            name=name,
            weights_digest=weights_digest,
            preprocess=preprocess_of(model),
            precision=precision,
            dimension=self._encode_texts(["a photo"]).shape[1],
            logit_scale=model.logit_scale.detach().float().exp().item(),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        """[n, height, width, 3] uint8 of the preprocessing's size to [n, dimension], unit rows.

        Raises ``DeviceOutOfMemory``, with the device's memory tidied up for a smaller call.
        """
        height, width = self._info.preprocess.size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (height, width, 3):
            raise ValueError(
                f"expected uint8 pixels of shape (n, {height}, {width}, 3), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        try:
            return self._in_chunks(pixels, self.preferred_batch, self._images)
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        # Not before the error is gone: its traceback holds what there is of the batch
        with suppress(RuntimeError):  # which a recording of a graph that broke off may bring
            torch.cuda.empty_cache()  # does nothing where CUDA was never used
        raise DeviceOutOfMemory(f"no memory for {len(pixels)} rows: {reason}")

    def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        """n texts to [n, dimension], unit rows. What is longer than the model reads is cut off."""
        return self._in_chunks(texts, _TEXTS_AT_ONCE, self._encode_texts)

    def device_memory(self) -> DeviceMemory | None:
        """Of a GPU; None on a CPU, and of a GPU that has failed."""
        device = self._model.logit_scale.device
        if device.type != "cuda":
            return None
        try:
            free, size = torch.cuda.mem_get_info(device)
        except RuntimeError:
            return None
        return DeviceMemory(str(device), torch.cuda.memory_allocated(device), size - free, size)

    def warm_up(self) -> None:
        """Encode a canary, alone and in a full batch, so that no request waits for what a device
        does on first use. Raises ``Misconfigured`` if its embedding is not finite."""
        height, width = self._info.preprocess.size
        ramp = np.linspace(0, 255, height * width * 3).astype(np.uint8)
        canaries = np.tile(ramp.reshape(1, height, width, 3), (self.preferred_batch, 1, 1, 1))
        for rows in (self.encode_images(canaries[:1]), self.encode_images(canaries)):
            if not np.isfinite(rows).all():
                raise Misconfigured(
                    f"the model {self._info.name!r} gives no finite embedding of a test image in "
                    f"{self._info.precision}; choose precision fp32, or other weights"
                )

    def _in_chunks(
        self, items: Rows, size: int, encode: Callable[[Rows], Float32Rows]
    ) -> Float32Rows:
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        # a chunk for each stream at a time, so that another call's get their turn in between
        at_once = self._streams.count
        done: list[Float32Rows] = [
            rows
            for start in range(0, len(chunks), at_once)
            for rows in self._streams.threads.map(encode, chunks[start : start + at_once])
        ]
        return np.concatenate([np.empty((0, self._info.dimension), np.float32), *done])

    def _encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        with torch.inference_mode():
            tokens = self._tokenize(list(texts)).to(self._model.logit_scale.device)
            features = self._model.encode_text(tokens)
            rows: Float32Rows = normalize(features.float(), dim=-1).cpu().numpy()
        return rows


def load_encoder(
    name: str,
    *,
    checkpoint: Path | None = None,
    model_config: str | Path | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    engine: Engine | Literal["auto"] = "torch",
    threads: int | None = None,
    batch_rows: int | None = None,
) -> OpenClipEncoder:
    """Load a model; takes seconds, and minutes where its weights are downloaded first.

    ``name`` is ``pocket``; or an open_clip architecture and pretrained tag, such as
    ``ViT-L-14/datacomp_xl_s13b_b90k``; or ``hf-hub:owner/repository`` or ``local-dir:path``, as
    open_clip reads them; or, with a ``checkpoint``, any name for it. ``model_config`` says what a
    checkpoint's weights fit: an architecture, or a JSON file in open_clip's format (with or without
    ``model_cfg`` and ``preprocess_cfg``). ``precision`` is by itself fp16 on CUDA and fp32
    elsewhere. ``engine`` runs the image tower: ``auto`` is ONNX Runtime on a CPU in fp32 where it
    is installed; torch stands in for it, with a warning in the log, where it gives other
    embeddings than torch or cannot run the model. ``threads`` is how many cores the engine may
    use; by itself, all. ``batch_rows`` is the most that a GPU is to run at once, 64 by itself: it
    prepares for batches up to that size.

    Raises ``Misconfigured``.
    """
    target = device_of(device)
    if target.type == "cpu":
        keep_freed_memory()
    streams = Streams(_STREAMS.get(target.type, 1), threads)
    own = precision if precision != "auto" else "fp16" if target.type == "cuda" else "fp32"
    plain = target.type == "cpu" and own == "fp32"
    by_onnx = _by_onnx(engine, plain)

    # for pocket, a thousand texts are encoded
    model, tokenize = streams.on_all_cores(lambda: build_model(name, checkpoint, model_config))

    def load() -> OpenClipEncoder:
        digest = weights_digest(model)
        if name == POCKET:
            fold_batch_norms(model.visual.trunk)
        model.eval().to(device=target, dtype=DTYPES[own])
        tower = ImageTower(model)
        by_torch: ImageEngine = TorchEngine(tower)
        images: ImageEngine | None = None
        if target.type == "cuda":
            by_torch = cuda_engine(tower, most=batch_rows or _BATCH_ON_CUDA, lanes=streams.count)
        if by_onnx:
            from worker.onnx_engine import load_onnx  # an optional dependency

            images = load_onnx(
                tower, by_torch, weights_digest=digest, streams=streams.count, cores=streams.cores
            )
        if name == POCKET and plain:  # not before the export, which knows torch's own layers alone
            pointwise_by_onednn(model.visual.trunk)
            pad_within_convolutions(model.visual.trunk)
        if plain and images is None:
            pack_linears(tower, by_torch)
        return OpenClipEncoder(
            name,
            model,
            tokenize,
            images or by_torch,
            weights_digest=digest,
            precision=own,
            streams=streams,
        )

    return streams.threads.submit(load).result()


def _by_onnx(engine: Engine | Literal["auto"], plain: bool) -> bool:
    """Whether ONNX Runtime is to run the image tower; ``plain``: on a CPU in fp32."""
    if engine == "torch":
        return False
    missing = [
        package
        for package in ("onnxruntime", "onnxscript")
        if importlib.util.find_spec(package) is None
    ]
    if engine == "onnx" and missing:
        raise Misconfigured(
            f"the engine onnx needs {' and '.join(missing)}, which is not installed; run: "
            f"pip install 'imagewarden[onnx]', or choose the engine auto or torch"
        )
    if engine == "onnx" and not plain:
        raise Misconfigured(
            "the engine onnx computes on a CPU in fp32; choose those, or the engine auto or torch"
        )
    return plain and not missing


def device_of(wanted: str) -> torch.device:
    """Of that name. Raises ``Misconfigured`` where it cannot be used here."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Misconfigured(
            f"the device {wanted!r} cannot be used ({first_line(error)}); write auto, cpu, cuda "
            f"or cuda:NUMBER"
        ) from error
    return device
