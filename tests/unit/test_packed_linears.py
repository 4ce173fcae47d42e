"""Linear layers by oneDNN, alone and in image towers of torch's, open_clip's and timm's making."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor, nn

from tests.unit.test_embed import TINY, noise
from worker.packed_linears import onednn_speedup, pack, pack_linears, unpack
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Float32Rows, Pixels

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch comes without oneDNN"
)

TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
#: And what is packed of each.
TOWERS: dict[str, tuple[dict[str, Any], int]] = {
    "torch's attention": (TINY["vision_cfg"], 2 * 4),
    # which keeps the first weight to itself
    "open_clip's attention": ({**TINY["vision_cfg"], "block_type": "custom"}, 2 * 3),
    "timm": ({**TIMM, "image_size": 160}, 6 * 4 + 1),
    # whose attention reads its layers' weights and calls none of them
    "resnet": ({"image_size": 32, "layers": [1] * 4, "width": 8, "head_width": 16}, 0),
}


@pytest.fixture(scope="module", params=TOWERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tower_of(kind: str = "torch's attention") -> ImageTower:
    torch.manual_seed(0)
    vision = TOWERS[kind][0]
    model = open_clip.CLIP(**{**TINY, "vision_cfg": vision}).eval()
    config = {"size": vision["image_size"], "mean": 0.5, "std": 0.25, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(
        model, {**config, "resize_mode": "shortest", "fill_color": 0}
    )
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bias"):  # zeros would hide that one is missing
            nn.init.normal_(parameter, std=0.1)
    return ImageTower(model)


def twice_as_fast(_: Tensor) -> float:
    return 2.0


def packed_in(tower: ImageTower) -> int:
    return sum(hasattr(module, "packed") for module in tower.modules())


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[of], others[of]) for of in some)


# ---------------------------------------------------------------- layers


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.integers(1, 20), max_size=3),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_packed_layer_gives_what_it_gave(
    rows: list[int], inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias)
    given = torch.rand(*rows, inputs)
    with torch.inference_mode():
        before = layer(given)
        pack([layer])
        assert torch.allclose(layer(given), before, atol=1e-5)


def test_rows_may_lie_in_any_order_in_memory() -> None:
    layer, given = nn.Linear(6, 5), torch.rand(6, 7, 3).permute(2, 1, 0)[:, ::2]
    with torch.inference_mode():
        before = layer(given)
        pack([layer])
        assert torch.allclose(layer(given), before, atol=1e-5)


def test_a_packed_weight_can_be_read_bit_by_bit() -> None:
    layer = nn.Linear(37, 19)
    before = layer.weight.detach().clone()
    pack([layer])
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("kind", [nn.Linear, nn.MultiheadAttention])
def test_unpacked_layers_are_what_they_were(kind: Callable[..., nn.Module]) -> None:
    layer = kind(8, 8) if kind is nn.Linear else kind(8, 2, batch_first=True)
    before = deepcopy(layer.state_dict())
    pack([layer])
    assert not same(layer.state_dict(), before)
    unpack([layer])
    assert type(layer) is kind
    assert same(layer.state_dict(), before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"need_weights": False},
        {"need_weights": True},
        {"need_weights": False, "attn_mask": torch.ones(7, 7).triu(1).bool()},
        {"need_weights": False, "key_padding_mask": torch.eye(3, 7).bool()},
    ],
)
def test_packed_attention_gives_what_it_gave(options: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(24, 3, bias=bias, batch_first=True).eval()
    some, others = torch.rand(3, 7, 24), torch.rand(3, 7, 24)
    with torch.inference_mode():
        before = [attention(some, of, of, **options) for of in (some, others)]
        pack([attention])
        after = [attention(some, of, of, **options) for of in (some, others)]
    for (rows, weights), (expected, expected_weights) in zip(after, before, strict=True):
        assert torch.allclose(rows, expected, atol=1e-5)
        assert (weights is None) == (expected_weights is None)
        assert weights is None or torch.allclose(weights, expected_weights, atol=1e-5)


def test_how_much_faster_it_is_is_measured() -> None:
    assert onednn_speedup(torch.rand(64, 32)) > 0


# ---------------------------------------------------------------- towers


def test_a_packed_tower_gives_the_rows_that_it_gave(kind: str) -> None:
    tower = tower_of(kind)
    engine = TorchEngine(tower)
    images = noise(5, side=tower.preprocess.size[0])
    before = engine(images)
    pack_linears(tower, engine, speedup=twice_as_fast)
    assert packed_in(tower) == TOWERS[kind][1]
    assert np.allclose(engine(images), before, atol=1e-5)
    assert np.allclose(engine(images[:1]), before[:1], atol=1e-5)


def test_the_texts_tower_is_left_alone() -> None:
    tower = tower_of()
    before = deepcopy(tower.model.transformer.state_dict())
    pack_linears(tower, TorchEngine(tower), speedup=twice_as_fast)
    assert same(tower.model.transformer.state_dict(), before)


def test_a_packed_tower_may_be_called_by_several_threads_at_once() -> None:
    tower = tower_of()
    engine = TorchEngine(tower)
    pack_linears(tower, engine, speedup=twice_as_fast)
    expected = engine(noise(5))
    with ThreadPoolExecutor(4) as threads:
        for rows in threads.map(engine, [noise(5)] * 20):
            assert np.allclose(rows, expected, atol=1e-6)


def test_the_largest_weight_is_timed() -> None:
    timed: list[Tensor] = []

    def speedup(weight: Tensor) -> float:
        timed.append(weight)
        return 1.0

    tower = tower_of()
    pack_linears(tower, TorchEngine(tower), speedup=speedup)
    assert [weight.shape for weight in timed] == [(256, 64)]


def test_nothing_is_packed_where_it_would_not_be_much_faster(kind: str) -> None:
    tower = tower_of(kind)
    before = deepcopy(tower.state_dict())
    with capture_logs() as logs:
        pack_linears(tower, TorchEngine(tower), speedup=lambda _: 1.2)
    assert same(tower.state_dict(), before)
    assert {entry["log_level"] for entry in logs} == {"info"}


class Unlike:
    """Gives other rows once the tower's layers are packed, or fails."""

    name = "unlike"
    preferred_batch = 1

    def __init__(self, tower: ImageTower, *, fails: bool) -> None:
        self._tower = tower
        self._fails = fails

    def __call__(self, pixels: Pixels) -> Float32Rows:
        rows = TorchEngine(self._tower)(pixels)
        if packed_in(self._tower):
            if self._fails:
                raise RuntimeError("could not execute a primitive")
            rows = np.roll(rows, 1, axis=1)
        return rows


@pytest.mark.parametrize("fails", [True, False])
def test_a_tower_that_packing_changes_stays_as_it_was_with_a_warning(fails: bool) -> None:
    tower = tower_of()
    before = deepcopy(tower.state_dict())
    with capture_logs() as logs:
        pack_linears(tower, Unlike(tower, fails=fails), speedup=twice_as_fast)
    assert same(tower.state_dict(), before)
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_a_measurement_that_fails_leaves_the_tower_as_it_was_with_a_warning() -> None:
    def speedup(_: Tensor) -> float:
        raise RuntimeError("no such operator")

    tower = tower_of()
    before = deepcopy(tower.state_dict())
    with capture_logs() as logs:
        pack_linears(tower, TorchEngine(tower), speedup=speedup)
    assert same(tower.state_dict(), before)
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_this_torch_has_the_operators() -> None:
    tower = tower_of()
    pack_linears(tower, TorchEngine(tower), speedup=twice_as_fast)
    assert packed_in(tower)


def test_a_torch_without_the_operators_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    tower = tower_of()
    with capture_logs() as logs:
        pack_linears(tower, TorchEngine(tower), speedup=twice_as_fast)
    assert not packed_in(tower)
    assert logs == []
