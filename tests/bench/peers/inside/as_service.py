"""clip-as-service's server, asked over gRPC by its own client for images by URL."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from clip_server.executors.clip_torch import CLIPEncoder
from clip_server.model import openclip_model
from docarray import Document, DocumentArray
from jina import Flow
from progress import done, versions
from safetensors.torch import load_file

# Of these it reads and decodes the next half while the model has one
IN_A_REQUEST = 64


class OwnWeights(CLIPEncoder):
    """It takes no file of one's own: this one stands in for what it would download."""

    def __init__(self, file: str, **options: Any) -> None:
        openclip_model.download_model = lambda url, md5sum: file
        super().__init__("ViT-B-32::laion2b-s34b-b79k", **options)


def main(checkpoint: str, urls: list[str]) -> None:
    versions("clip-server", "jina", "open_clip_torch")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(load_file(checkpoint), weights)
        options = {"file": str(weights), "device": "cpu"}
        flow = Flow().add(uses=OwnWeights, uses_with=options)
        with flow:
            flow.post(
                "/",
                DocumentArray(Document(uri=url) for url in urls),
                on_done=lambda answer: done(len(answer.docs.embeddings)),
                request_size=IN_A_REQUEST,
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
