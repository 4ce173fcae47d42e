"""JPEGs decoded on the GPU, beside the worker's decoder: ``python -m worker.bench.gpu_decode DEVICE
KILOBYTES IMAGES``. Prints a JSON object.

The worker does not offer it. It would parse strangers' bytes in the process that has the model and
Kafka's keys, where nothing confines a parser that is led astray; and its pixels have yet to pass
the guard that every faster path has to pass, of which this prints the figure.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from worker.bench.alone import decoding
from worker.bench.noop_worker import PREPROCESS
from worker.bench.photos import photos
from worker.embed import load_encoder
from worker.errors import Misconfigured
from worker.imaging import Limits, decode
from worker.logs import set_up_logs
from worker.types import FramePlan, Pixels

_BATCH = 64
_DISTINCT = 20


def gpu_decode(device: str, kilobytes: int, images: int) -> dict[str, float | list[float] | str]:
    bodies = photos(_DISTINCT, kilobytes)
    taken = [bodies[number % len(bodies)] for number in range(_BATCH)]
    batch = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in taken]
    found: dict[str, float | list[float] | str] = {}
    for name, finish in (("decoded", None), ("decoded and resampled", _at_the_models_size)):
        rates: list[float] = []
        for _ in range(4):
            calls = max(1, images // _BATCH)
            began, core = time.perf_counter(), time.process_time()
            for _ in range(calls):
                pictures = _decoded(batch, device)
                if finish:
                    torch.stack([finish(picture) for picture in pictures])
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            rates.append(calls * _BATCH / (time.perf_counter() - began))
            core_ms = 1000 * (time.process_time() - core) / (calls * _BATCH)
        found[f"images/s, {name}"] = rates[1:]
        found[f"core-ms/image, {name}"] = core_ms
    found |= decoding(kilobytes, images)
    return found | _guard(device, bodies)


def _decoded(batch: list[Tensor], device: str) -> list[Tensor]:
    if device.startswith("cuda"):
        pictures: list[Tensor] = decode_jpeg(batch, mode=ImageReadMode.RGB, device=device)
        return pictures
    return [decode_jpeg(body, mode=ImageReadMode.RGB) for body in batch]


def _at_the_models_size(picture: Tensor) -> Tensor:
    """As open_clip's transform, and so the worker's decoder, but in torch's own resampling."""
    size = list(PREPROCESS.size)
    shortest = functional.resize(
        picture, [size[0]], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    cropped: Tensor = functional.center_crop(shortest, size)
    return cropped


def _guard(device: str, bodies: list[bytes]) -> dict[str, float | str]:
    """The worst cosine between a photo's embeddings by the two decoders, with pocket: random
    weights hardly tell photos apart."""
    try:
        encoder = load_encoder("pocket", device=device, precision="fp32")
    except (Misconfigured, ImportError) as error:
        return {"guard": f"left out, it needs the pocket model: {error}"}
    bytes_of = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies]
    there = [_at_the_models_size(picture) for picture in _decoded(bytes_of, device)]
    here = [
        decode(body, "", PREPROCESS, FramePlan(), Limits(50_000_000, 500_000_000)).pixels
        for body in bodies
    ]
    pixels: Pixels = torch.stack(there).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    cosines = encoder.encode_images(pixels) * encoder.encode_images(np.concatenate(here))
    return {"worst cosine to the worker's decoder": float(cosines.sum(axis=1).min())}


if __name__ == "__main__":
    set_up_logs("warning", "auto")  # to standard error
    told = gpu_decode(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(told))  # noqa: T201 - for who asks
