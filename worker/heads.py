"""Head files: a logistic regression on embeddings, as ``policy fit-head`` writes it.

They are safetensors: ``vector``, [dimension] float32, and ``bias``, [1] float32, with metadata that
says what they were fitted on. Nothing in them is code.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from worker.policy import Head

FORMAT: Final = "imagewarden-head-1"


def parse_head(raw: bytes, file: str, weight: float = 1.0) -> Head:
    """The head in a file's content; ``file`` is its name in the policy.

    Raises ``ValueError``, with what the file is instead of a head, for anything else.
    """
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    metadata = _metadata(raw)
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "nothing")
        raise ValueError(f"is no head: its metadata has {found!r} as `format`, not {FORMAT!r}")
    if not (space := metadata.get("space")):
        raise ValueError("does not say in its metadata which embeddings it is for (`space`)")
    vector = _numbers(tensors, "vector")
    bias = _numbers(tensors, "bias")
    if len(bias) != 1:
        raise ValueError(f"has {len(bias)} numbers as `bias`, not one")
    if not np.any(vector):
        raise ValueError("holds a `vector` of zeros, which tells no image from another")
    return Head(
        file=file,
        digest="sha256:" + hashlib.sha256(raw).hexdigest(),
        space=space,
        vector=tuple(vector.tolist()),
        bias=float(bias[0]),
        weight=weight,
    )


def _metadata(raw: bytes) -> dict[str, str]:
    """Of a file that ``load`` has taken, so its header is whole: a length, then JSON."""
    length = int.from_bytes(raw[:8], "little")
    metadata: dict[str, str] = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
    return metadata


def _numbers(tensors: dict[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    found = tensors.get(name)
    if found is None:
        raise ValueError(f"holds no `{name}`")
    if found.dtype != np.float32 or found.ndim != 1 or not found.size:
        raise ValueError(f"holds a `{name}` of {found.dtype}{list(found.shape)}, not float32[n]")
    if not np.isfinite(found).all():
        raise ValueError(f"holds a `{name}` that is not finite")
    return found
