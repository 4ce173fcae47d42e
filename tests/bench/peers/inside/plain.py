"""What open_clip's own page shows, in a loop: one file after the other, on torch's threads."""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import torch
from PIL import Image
from progress import done, versions


def main(checkpoint: str, folder: str) -> None:
    versions("open_clip_torch")
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=checkpoint)
    model.eval()
    for file in sorted(Path(folder).iterdir()):
        with torch.inference_mode():
            features = model.encode_image(preprocess(Image.open(file)).unsqueeze(0))
            features /= features.norm(dim=-1, keepdim=True)
        done(1)


if __name__ == "__main__":
    main(*sys.argv[1:3])
