"""From a model's name, or a checkpoint, to its weights in an open_clip model, and their digest.

Weights are read from safetensors files or with torch's ``weights_only`` unpickler: a checkpoint
cannot run code.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worker.errors import Misconfigured
from worker.pocket import build_pocket
from worker.uncompiled import open_clip

POCKET: Final = "pocket"

Tokenize = Callable[[Sequence[str]], Tensor]

#: What reading somebody's weights and configuration raises, in open_clip, torch and transformers.
_UNREADABLE: Final = (
    *(RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError),
    *(ImportError, pickle.UnpicklingError, SafetensorError),
)


def build_model(
    name: str, checkpoint: Path | None, config: str | Path | None
) -> tuple[nn.Module, Tokenize]:
    """The model on the CPU in float32, and its tokenizer; ``load_encoder`` says what the arguments
    may be. Raises ``Misconfigured``."""
    if checkpoint is not None:
        return _from_checkpoint(name, checkpoint, config)
    if config is not None:
        raise Misconfigured(
            f"the model config {str(config)!r} is given without a checkpoint; give the checkpoint "
            f"whose weights fit it, or neither"
        )
    if name == POCKET:
        return build_pocket()
    if name.startswith(("hf-hub:", "local-dir:")):
        return _create(name, name, require_pretrained=True)
    return _from_registry(name)


def _from_registry(name: str) -> tuple[nn.Module, Tokenize]:
    architecture, _, tag = name.partition("/")
    models = open_clip.list_models()
    if architecture not in models:
        raise Misconfigured(
            f"model {name!r}: open_clip knows no architecture {architecture!r}"
            f"{_near(architecture, models)}; write ARCHITECTURE/TAG, such as "
            f"ViT-L-14/datacomp_xl_s13b_b90k, or pocket"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise Misconfigured(
            f"model {name!r}: open_clip has no weights {tag!r} for {architecture}"
            f"{_near(tag, tags)}; it has: {', '.join(tags) or 'none'}"
        )
    # Some weights were trained with another activation than the architecture's own
    quick_gelu = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    return _create(
        name, architecture, pretrained=tag, force_quick_gelu=quick_gelu, require_pretrained=True
    )


def _from_checkpoint(
    name: str, checkpoint: Path, config: str | Path | None
) -> tuple[nn.Module, Tokenize]:
    if name == POCKET:
        raise Misconfigured(f"`pocket` is the name of another model than {checkpoint}; name yours")
    if not checkpoint.is_file():
        raise Misconfigured(f"the checkpoint {checkpoint} is not a file; check its path")
    if config is None:
        raise Misconfigured(
            f"the checkpoint {checkpoint} comes without a model config; give the open_clip "
            f"architecture that its weights fit, such as ViT-B-32, or a JSON config file"
        )
    architecture, preprocess = _architecture(config)
    return _create(
        name,
        architecture,
        pretrained=str(checkpoint.resolve()),
        force_preprocess_cfg=preprocess,
    )


def _architecture(config: str | Path) -> tuple[str, dict[str, Any]]:
    """The architecture's name for open_clip, and what the file says of the preprocessing."""
    models = open_clip.list_models()
    if str(config) in models:
        return str(config), {}
    path = Path(config)
    try:
        content = json.loads(path.read_bytes())
        model = content.get("model_cfg", content)
        preprocess = content.get("preprocess_cfg", {})
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]
    except FileNotFoundError as error:
        raise Misconfigured(
            f"the model config {str(config)!r} is neither a file nor an open_clip architecture"
            f"{_near(str(config), models)}"
        ) from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise Misconfigured(
            f"the model config {path} is not a JSON file of open_clip's ({first_line(error)})"
        ) from error
    if missing:
        raise Misconfigured(f"the model config {path} has no {', '.join(missing)}; add it")
    with tempfile.TemporaryDirectory() as folder:  # open_clip takes architectures from files only
        registered = Path(folder) / f"{path.stem}.json"
        registered.write_text(json.dumps(model))
        open_clip.add_model_config(registered)
    return path.stem, preprocess


def _create(name: str, architecture: str, **options: Any) -> tuple[nn.Module, Tokenize]:
    try:
        model = open_clip.create_model(architecture, weights_only=True, **options)
        return model, open_clip.get_tokenizer(architecture)
    except _UNREADABLE as error:
        source = options.get("pretrained", architecture)
        raise Misconfigured(
            f"model {name!r}: {source} cannot be loaded as {architecture}: {first_line(error)}"
        ) from error


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the model's state: names in order, with dtype, shape and bytes of each tensor.

    Taken before the weights are cast to the device's precision, so equal weights have equal digests
    on all devices.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return "sha256:" + digest.hexdigest()
