"""open_clip's ViT-B-32 in Hugging Face's layout: the same weights by other names."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

_TOWER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
}
_NORMS = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def save_as_hugging_face(checkpoint: str, folder: Path) -> None:
    """Model and processor. Its text tower stays as it was made, and its tokenizer knows no words:
    only images are embedded."""
    theirs = load_file(checkpoint)
    weights = {new: theirs[old] for old, new in _TOWER.items()}
    weights["visual_projection.weight"] = theirs["visual.proj"].T.contiguous()
    for kind in ("weight", "bias"):
        for old, new in _NORMS.items():
            weights[f"vision_model.{new}.{kind}"] = theirs[f"visual.{old}.{kind}"]
    for number in range(12):
        weights |= _block(theirs, number)
    # The defaults are those of ViT-B-32, but for the activation
    config = CLIPConfig(vision_config={"hidden_act": "gelu"}, text_config={"hidden_act": "gelu"})
    model = CLIPModel(config)
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or any("text" not in name and "logit" not in name for name in missing):
        raise RuntimeError(f"the layouts differ: {unknown}, {missing}")
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def _block(theirs: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    old, new = f"visual.transformer.resblocks.{number}", f"vision_model.encoder.layers.{number}"
    found = {}
    for kind in ("weight", "bias"):
        for part, name in _BLOCK.items():
            found[f"{new}.{name}.{kind}"] = theirs[f"{old}.{part}.{kind}"]
        for name, rows in zip("qkv", theirs[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
            found[f"{new}.self_attn.{name}_proj.{kind}"] = rows.contiguous()
    return found
