"""Random weights: speed needs no trained ones, and nothing has to be downloaded."""

from __future__ import annotations

import os
from pathlib import Path


def bench_folder() -> Path:
    """Where what is made for measurements is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "imagewarden" / "bench"


def random_checkpoint(architecture: str, folder: Path) -> Path:
    """``<folder>/<architecture>.safetensors``, the same weights every time: made unless it is there
    (3 s and 600 MB for ViT-B-32)."""
    path = folder / f"{architecture}.safetensors"
    if path.is_file():
        return path
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, new)
    new.replace(path)
    return path
