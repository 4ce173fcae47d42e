"""A worker whose model takes no time: ``python -m worker.bench.noop_worker``. What is left is what
the service costs by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from worker.app import run_worker
from worker.command_line import finish
from worker.logs import set_up_logs
from worker.settings_load import load_settings
from worker.types import Float32Rows, ModelInfo, Pixels, PreprocessSpec, digest_of

NAME = "no-op"

#: What most models take, and so what images are decoded to.
PREPROCESS = PreprocessSpec(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class NoEncoder:
    """Every image has the same embedding, every text a direction of its own."""

    engine = "none"
    preferred_batch = 8

    def __init__(self, dimension: int = 512) -> None:
        self.info = ModelInfo(
            name=NAME,
            weights_digest=digest_of([NAME, dimension]),
            preprocess=PREPROCESS,
            precision="float32",
            dimension=dimension,
            logit_scale=100.0,
        )
        self._row = self._of_text("an image")

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        return np.tile(self._row, (len(pixels), 1))

    def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        rows = [self._of_text(text) for text in texts]
        return np.stack(rows) if rows else np.empty((0, self.info.dimension), np.float32)

    def device_memory(self) -> None:
        return None

    def _of_text(self, text: str) -> Float32Rows:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        row = np.random.default_rng(seed).standard_normal(self.info.dimension)
        unit: Float32Rows = (row / np.linalg.norm(row)).astype(np.float32)
        return unit


def plain_policy(model: str, categories: int = 6, prompts: int = 6) -> bytes:
    """One for any model, as large as those that ship."""
    return json.dumps(
        {
            "version": 1,
            "id": "bench",
            "model": model,
            "contrast": [f"an ordinary thing, number {number}" for number in range(12)],
            "categories": [
                {
                    "id": f"bench.category{number}",
                    "prompts": [f"thing {number} of kind {kind}" for kind in range(prompts)],
                    "review": 0.9,
                }
                for number in range(categories)
            ],
        }
    ).encode()


def main() -> None:
    settings = load_settings()
    set_up_logs(settings.log.level, settings.log.format)
    finish(run_worker(settings, load=lambda settings: NoEncoder()))


if __name__ == "__main__":
    main()
