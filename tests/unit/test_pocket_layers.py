"""What the pocket model's image tower becomes for speed embeds as it did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.pocket import pad_within_convolutions
from worker.uncompiled import timm


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("groups", [1, 6])
def test_convolution_that_pads_by_itself_gives_the_same(size: int, groups: int) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(timm.layers.Conv2dSame(6, 12, size, stride=2, groups=groups))
    images = torch.randn(2, 6, 28, 28)
    with torch.inference_mode():
        before = trunk(images)
        pad_within_convolutions(trunk)
        assert (trunk(images) - before).abs().max() < 1e-5


def test_no_convolution_that_copies_its_images_is_left() -> None:
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        before = trunk(images)
        pad_within_convolutions(trunk)
        assert (trunk(images) - before).abs().max() < 1e-4
    assert not any(isinstance(module, timm.layers.Conv2dSame) for module in trunk.modules())
