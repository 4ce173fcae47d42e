"""``clip-retrieval inference``, of files in a folder to embeddings in another."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from clip_retrieval.clip_inference import worker
from clip_retrieval.clip_inference.main import main as inference
from progress import done, versions

# With its own 256 all the photos would be one batch, and nothing would be read meanwhile
BATCH = 32


class ToldMapper(worker.ClipMapper):
    def __call__(self, item: dict[str, Any]) -> Any:
        embeddings = super().__call__(item)
        done(len(embeddings["image_embs"]))
        return embeddings


def main(checkpoint: str, folder: str) -> None:
    versions("clip-retrieval", "open_clip_torch")
    worker.ClipMapper = ToldMapper
    with tempfile.TemporaryDirectory() as output:
        inference(
            folder,
            output,
            batch_size=BATCH,
            enable_text=False,
            clip_model=f"open_clip:ViT-B-32/{checkpoint}",
        )


if __name__ == "__main__":
    main(*sys.argv[1:3])
