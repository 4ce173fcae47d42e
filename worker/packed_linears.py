"""Linear layers by oneDNN, on a CPU in float32, with weights in the order that its kernels read.

torch hands these layers to MKL, which does less than half of what AMD's processors can: 105 GFLOP/s
on a core where oneDNN does 240. Others' may like MKL better, so one layer is timed both ways.

A packed layer keeps no other copy of its weight. Packing only moves numbers, so who asks for the
weight gets it back bit by bit, made for the occasion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from worker.canaries import canaries, worst_cosine
from worker.torch_engine import ImageEngine, ImageTower

_log = structlog.get_logger(__name__)

#: Below, what is timed may be chance.
_MIN_SPEEDUP: Final = 1.3
#: Between an embedding by packed layers and by plain ones. Found: .9999999 for ViT-B-32.
_MIN_COSINE: Final = 0.99999
#: Two, because each costs as long as an embedding takes: a ramp and noise.
_CANARIES: Final = 2

_TIMED_ROWS: Final = 128
_TIMED_RUNS: Final = 5


class _PackedLinear(nn.Linear):  # type: ignore[misc]
    packed: Tensor

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()

    def forward(self, rows: Tensor) -> Tensor:
        return _product(rows, self.packed, self.bias)


class _PackedAttention(nn.MultiheadAttention):  # type: ignore[misc]
    """torch's own reads the weights of its linear layers and calls none of them."""

    packed: Tensor

    @property
    def in_proj_weight(self) -> Tensor:
        return self.packed.to_dense()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if masked or need_weights or query.dim() != 3 or not query is key is value:
            attended: tuple[Tensor, Tensor | None] = super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return attended
        joined = _product(query, self.packed, self.in_proj_bias)
        # [n, tokens, 3 * width] to three of [n, heads, tokens, width / heads]
        each = joined.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        heads = scaled_dot_product_attention(*each)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), None


def onednn_speedup(weight: Tensor) -> float:
    """How many times as fast as torch's own way oneDNN is; takes about 100 ms to find."""
    packed = _packed(weight)
    rows = torch.linspace(-1, 1, _TIMED_ROWS * weight.shape[1]).view(_TIMED_ROWS, -1)

    ways: Sequence[Callable[[], Tensor]] = (
        lambda: linear(rows, weight),
        lambda: _product(rows, packed, None),
    )
    best = [math.inf, math.inf]
    for _ in range(_TIMED_RUNS):  # in turn, so that what else runs here slows both
        for way, run in enumerate(ways):
            began = time.perf_counter()
            run()
            best[way] = min(best[way], time.perf_counter() - began)
    return best[0] / best[1]


def pack_linears(
    tower: ImageTower,
    engine: ImageEngine,
    *,
    speedup: Callable[[Tensor], float] = onednn_speedup,
) -> None:
    """Pack the linear layers of ``tower`` in place where oneDNN is the faster: ``speedup`` says
    of the largest weight how many times. Where packing fails, or ``engine``, which runs ``tower``,
    then gives other rows, all layers are as they were, with a warning in the log. ``tower`` is on a
    CPU in float32, and nobody else calls it yet."""
    layers = [module for module in tower.model.visual.modules() if _weight_of(module)]
    if not layers or not _has_onednn():
        return
    try:
        largest = max((getattr(layer, _weight_of(layer)) for layer in layers), key=Tensor.numel)
        times_as_fast = speedup(largest.detach())
        if times_as_fast < _MIN_SPEEDUP:
            _log.info("linear_layers_stay_with_torch", onednn_times_as_fast=round(times_as_fast, 2))
            return
        cosine = _pack_called(layers, tower, engine)
    except Exception as error:  # noqa: BLE001 - what these private operators cannot do, torch can
        unpack(layers)
        _log.warning("onednn_failed_so_linear_layers_stay_with_torch", error=repr(error)[:300])
        return
    if not cosine >= _MIN_COSINE:  # or it is not a number
        unpack(layers)
        _log.warning(
            "onednn_differs_so_linear_layers_stay_with_torch", cosine=cosine, needed=_MIN_COSINE
        )
        return
    _log.info("linear_layers_by_onednn", times_as_fast=round(times_as_fast, 2), cosine=cosine)


def pack(layers: Iterable[nn.Module]) -> None:
    """In place: linear layers, and attention of torch's that keeps its three weights as one. On a
    CPU, in float32, for inference alone."""
    for layer in layers:
        if isinstance(layer, nn.MultiheadAttention):
            _pack(layer, "in_proj_weight", _PackedAttention)
            _pack(layer.out_proj, "weight", _PackedLinear)
        else:
            _pack(layer, "weight", _PackedLinear)


def unpack(layers: Iterable[nn.Module]) -> None:
    """Those that ``pack`` packed, whichever they are, are plain again, with the same weights."""
    for layer in layers:
        if isinstance(layer, _PackedAttention):
            _unpack(layer, "in_proj_weight", nn.MultiheadAttention)
            unpack([layer.out_proj])
        elif isinstance(layer, _PackedLinear):
            _unpack(layer, "weight", nn.Linear)


def _has_onednn() -> bool:
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in operators
    )


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """[..., in] by a packed [out, in] to [..., out]."""
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")


def _weight_of(module: nn.Module) -> str:
    """The name that the weight has in it; empty where it is not to be packed."""
    if type(module) is nn.Linear:
        return "weight"
    is_plain_attention = (
        type(module) is nn.MultiheadAttention
        and module.in_proj_weight is not None
        and module.batch_first
        and module.bias_k is None
        and not module.add_zero_attn
    )
    return "in_proj_weight" if is_plain_attention else ""


def _pack_called(layers: Sequence[nn.Module], tower: ImageTower, engine: ImageEngine) -> float:
    """Pack those of ``layers`` that ``engine`` calls; returns the worst cosine to what it gave
    before. Of the rest it reads the weight, as CLIP's ResNets do: to unpack that for every batch
    would cost more than packing saves."""
    called: set[nn.Module] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: called.add(layer)) for layer in layers
    ]
    images = canaries(*tower.preprocess.size)[:_CANARIES]
    try:
        before = iter([engine(images[[index]]) for index in range(_CANARIES)])
    finally:
        for hook in hooks:
            hook.remove()
    pack(called)
    return worst_cosine(engine, lambda _: next(before), images, (_CANARIES,))


def _pack(layer: nn.Module, weight: str, kind: type[nn.Module]) -> None:
    packed = _packed(getattr(layer, weight))
    delattr(layer, weight)
    layer.packed = packed
    layer.__class__ = kind


def _unpack(layer: nn.Module, weight: str, kind: type[nn.Module]) -> None:
    plain = layer.packed.to_dense()
    del layer.packed
    layer.__class__ = kind
    layer.register_parameter(weight, nn.Parameter(plain, requires_grad=False))
