"""all-MiniLM-L6-v2, from token ids to the mean of its tokens: BERT with six layers.

The modules have the names of the checkpoint's weights. ``transformers`` has it too, and takes a
second and 80 MB to import for it; a test holds this one against that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

WIDTH: Final = 384
_VOCABULARY: Final = 30522
_POSITIONS: Final = 512
_LAYERS: Final = 6
_HEADS: Final = 12
_PADDING: Final = 0
#: Of the checkpoint, and not needed: the mean of the tokens is taken.
_UNUSED: Final = re.compile(r"pooler\.|embeddings\.position_ids")


class MiniLM(nn.Module):  # type: ignore[misc]
    """[n, longest] token ids, padded with 0, to [n, 384]."""

    def __init__(self, folder: Path) -> None:
        """With the weights in ``folder``, which stay there until they are used."""
        super().__init__()
        with torch.device("meta"):
            self.embeddings = nn.ModuleDict(
                {
                    "word_embeddings": _Embedding(_VOCABULARY, WIDTH),
                    "position_embeddings": _Embedding(_POSITIONS, WIDTH),
                    "token_type_embeddings": _Embedding(2, WIDTH),
                    "LayerNorm": _norm(),
                }
            )
            layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))
            self.encoder = nn.ModuleDict({"layer": layers})
        state = load_file(folder / "model.safetensors")
        self.load_state_dict(
            {name: tensor for name, tensor in state.items() if not _UNUSED.match(name)}, assign=True
        )

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.embeddings["word_embeddings"](tokens)
        # a single text is the first of two
        rows = rows + self.embeddings["token_type_embeddings"].weight[0]
        rows = rows + self.embeddings["position_embeddings"].weight[: tokens.shape[1]]
        rows = self.embeddings["LayerNorm"](rows)
        kept = tokens != _PADDING
        for layer in self.encoder["layer"]:
            rows = layer(rows, kept[:, None, None, :])
        counted = kept.unsqueeze(-1)
        return (rows * counted).sum(dim=1) / counted.sum(dim=1)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(
                    {name: _Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
                ),
                "output": _Added(WIDTH),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": _Linear(WIDTH, 4 * WIDTH)})
        self.output = _Added(4 * WIDTH)

    def forward(self, rows: Tensor, kept: Tensor) -> Tensor:
        """[n, tokens, 384] to the same; of ``kept`` [n, 1, 1, tokens] only these are looked at."""
        query, key, value = (
            self.attention["self"][name](rows).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = scaled_dot_product_attention(query, key, value, attn_mask=kept)
        rows = self.attention["output"](attended.transpose(1, 2).flatten(2), rows)
        return self.output(gelu(self.intermediate["dense"](rows)), rows)


class _Added(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = _Linear(width, WIDTH)
        self.LayerNorm = _norm()

    def forward(self, rows: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(rows) + before)


# Weights are loaded, not drawn: on the meta device that would import torch's compiler.


class _Linear(nn.Linear):  # type: ignore[misc]
    def reset_parameters(self) -> None: ...


class _Embedding(nn.Embedding):  # type: ignore[misc]
    def reset_parameters(self) -> None: ...


def _norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=1e-12)
