"""open_clip models as an ``Encoder``: put on a device, warm up, encode.

This module, ``weights`` and ``pocket`` alone import torch.

Threads: ``encode_images`` and ``encode_texts`` may be called from any threads at once. All torch
work happens on the encoder's own threads, its streams, which share the cores evenly; a call for
many rows lets others in between its chunks. On a CPU there are two, so that one computes while the
other waits for its team: on two cores each is alone on its core, waits for nobody, and decoders
beside it cost their own time and no more. No more than two, because OpenMP keeps a team for every
thread that ever called it, and teams larger than the machine together get less done.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, TypeVar

# OpenMP reads this once, when torch brings it in. Threads that wait for each other spin by default,
# and so take the cores from whom they wait for as soon as anything else runs: on two busy cores, 5
# images a second instead of 50 and more. Sleeping costs a tenth or two while nothing else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from worker.errors import DeviceOutOfMemory, Misconfigured
from worker.pocket import fold_batch_norms, pointwise_by_onednn
from worker.types import Float32Rows, ModelInfo, Pixels, PreprocessSpec
from worker.weights import POCKET, Tokenize, build_model, first_line, weights_digest

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# More rows are hardly faster on a CPU, and each takes 10 MB of activations in each stream; a GPU
# wants more work.
_BATCH_ON_CPU: Final = 8
_BATCH_ON_GPU: Final = 64
_TEXTS_AT_ONCE: Final = 64
_STREAMS_ON_CPU: Final = 2

Rows = TypeVar("Rows", Pixels, Sequence[str])


class Streams:
    """At most ``count`` threads that torch works on, with ``cores`` shared among them; by itself,
    all cores that torch would use."""

    def __init__(self, count: int, cores: int | None) -> None:
        cores = cores or torch.get_num_threads()
        self.count = min(count, cores)
        self.threads = ThreadPoolExecutor(
            self.count,
            thread_name_prefix="torch",
            # OpenMP's number is the calling thread's own
            initializer=torch.set_num_threads,
            initargs=(cores // self.count,),
        )


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
        *,
        weights_digest: str,
        device: torch.device,
        precision: Precision,
        streams: Streams,
    ) -> None:
        """``model`` in evaluation mode, wherever it is now."""
        self.preferred_batch = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
        self._streams = streams
        self._device = device
        self._dtype = DTYPES[precision]
        self._tokenize = tokenize
        self._model = model.to(device=device, dtype=self._dtype)
        # convolutions run 3 times as fast on a CPU when channels come last, as pixels arrive
        self._model.visual.to(memory_format=torch.channels_last)
        preprocess = preprocess_of(model)
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )
        self._info = ModelInfo(
            name=name,
            weights_digest=weights_digest,
            preprocess=preprocess,
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
            return self._in_chunks(pixels, self.preferred_batch, self._encode_images)
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        # Not before the error is gone: its traceback holds what there is of the batch
        torch.cuda.empty_cache()  # does nothing where CUDA was never used
        raise DeviceOutOfMemory(f"no memory for {len(pixels)} rows: {reason}")

    def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        """n texts to [n, dimension], unit rows. What is longer than the model reads is cut off."""
        return self._in_chunks(texts, _TEXTS_AT_ONCE, self._encode_texts)

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

    def _encode_images(self, pixels: Pixels) -> Float32Rows:
        owned = np.require(pixels, requirements=["C", "W"])  # what torch can share
        with torch.inference_mode():
            on_device = torch.from_numpy(owned).to(self._device)
            images = on_device.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)
            return _unit(self._model.encode_image(images.to(self._dtype)))

    def _encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        with torch.inference_mode():
            tokens = self._tokenize(list(texts)).to(self._device)
            return _unit(self._model.encode_text(tokens))


def load_encoder(
    name: str,
    *,
    checkpoint: Path | None = None,
    model_config: str | Path | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "auto",
    threads: int | None = None,
) -> OpenClipEncoder:
    """Load a model; takes seconds, and minutes where its weights are downloaded first.

    ``name`` is ``pocket``; or an open_clip architecture and pretrained tag, such as
    ``ViT-L-14/datacomp_xl_s13b_b90k``; or ``hf-hub:owner/repository`` or ``local-dir:path``, as
    open_clip reads them; or, with a ``checkpoint``, any name for it. ``model_config`` says what a
    checkpoint's weights fit: an architecture, or a JSON file in open_clip's format (with or without
    ``model_cfg`` and ``preprocess_cfg``). ``precision`` is by itself fp16 on CUDA and fp32
    elsewhere. ``threads`` is how many cores torch may use; by itself, all.

    Raises ``Misconfigured``.
    """
    target = _device(device)
    if target.type == "cpu":
        _keep_freed_memory()
    streams = Streams(_STREAMS_ON_CPU if target.type == "cpu" else 1, threads)
    own = precision if precision != "auto" else "fp16" if target.type == "cuda" else "fp32"

    def load() -> OpenClipEncoder:
        model, tokenize = build_model(name, checkpoint, model_config)
        digest = weights_digest(model)
        if name == POCKET:
            fold_batch_norms(model.visual.trunk)
            if target.type == "cpu" and own == "fp32":
                pointwise_by_onednn(model.visual.trunk)
        return OpenClipEncoder(
            name,
            model.eval(),
            tokenize,
            weights_digest=digest,
            device=target,
            precision=own,
            streams=streams,
        )

    return streams.threads.submit(load).result()


def _device(wanted: str) -> torch.device:
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


def _keep_freed_memory() -> None:
    """Have malloc keep what torch frees, for the whole process.

    A batch allocates and frees activations of tens of megabytes, layer by layer. glibc asks the
    kernel for each and gives it back, and more time goes into zeroing fresh pages than into
    convolutions (4,000 page faults an image; without them a batch takes half the time). Only the
    first of its arenas can grow without bound, so there must be no other.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of <malloc.h>
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 512 * 2**20)
    # older versions take no more than 32 MiB
    mallopt(mmap_threshold, 256 * 2**20) or mallopt(mmap_threshold, 32 * 2**20)


def preprocess_of(model: nn.Module) -> PreprocessSpec:
    """What open_clip says of the pixels that ``model`` was trained on."""
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return PreprocessSpec(
        size=(int(height), int(width)),
        mean=_by_channel(config["mean"]),
        std=_by_channel(config["std"]),
        # as open_clip's own transform: whatever else is written means bicubic
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize_mode=config["resize_mode"],
        fill=config["fill_color"],
    )


def _by_channel(values: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return (float(values),) * 3
    red, green, blue = values
    return float(red), float(green), float(blue)


def _unit(features: Tensor) -> Float32Rows:
    rows: Float32Rows = normalize(features.float(), dim=-1).cpu().numpy()
    return rows
