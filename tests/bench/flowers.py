"""What wording does to telling two plants apart: ``python -m tests.bench.flowers FOLDER``.

FOLDER is Caltech-101, a folder for each class. Every pair of the plants in it is told apart by the
pocket model with bare names against each other, and with names in "picture of a ... plant" (of the
two flowers also in "picture of a ... flower"); the likelier name counts. All pairs are printed,
those where wording does nothing or harm too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from worker.authoring.examples import Floats
from worker.authoring.measures import auroc
from worker.authoring.rates import rate
from worker.compile import compile_policy, texts_of
from worker.embed import load_encoder
from worker.imaging import Limits, decode
from worker.policy_yaml import parse_policy
from worker.score import image_margins
from worker.seams import Encoder
from worker.types import Embedding, EmbeddingKey, FramePlan

PLANTS: Final[Mapping[str, str]] = {
    "bonsai": "bonsai",
    "joshua_tree": "joshua tree",
    "lotus": "lotus",
    "strawberry": "strawberry",
    "water_lilly": "water lily",
}
FLOWERS: Final = {"lotus", "water_lilly"}
_LIMITS: Final = Limits(50_000_000, 500_000_000)


def embeddings(encoder: Encoder, folder: Path) -> list[Embedding]:
    found = []
    for path in sorted(folder.glob("*.jpg")):
        decoded = decode(
            path.read_bytes(), path.name, encoder.info.preprocess, FramePlan(), _LIMITS
        )
        rows = encoder.encode_images(decoded.pixels).astype(np.float16)
        key = EmbeddingKey(path.name, encoder.info.digest, FramePlan().digest)
        found.append(Embedding(key, rows, decoded.facts))
    return found


def margins(encoder: Encoder, one: str, other: str, images: Sequence[Embedding]) -> Floats:
    """Above 0 where ``one`` is likelier."""
    policy = parse_policy(
        f"""
        version: 1
        id: pair
        model: {encoder.info.name}
        categories: [{{id: one, prompts: [{one}], contrast: [{other}], review: 0.5}}]
        """.encode(),
        "pair.yaml",
    )
    texts = texts_of(policy)
    vectors = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    found: Floats = image_margins(compile_policy(policy, encoder.info, vectors), images)[:, 0]
    return found


def main(folder: Path) -> None:
    encoder = load_encoder("pocket")
    images = {name: embeddings(encoder, folder / name) for name in PLANTS}
    table = Table("pair", "images", "wording", "accuracy", "95 %", "AUROC")
    for first, second in combinations(PLANTS, 2):
        wordings = ["{}", "picture of a {} plant"]
        if {first, second} == FLOWERS:
            wordings.append("picture of a {} flower")
        both = [*images[first], *images[second]]
        shows = np.arange(len(both)) < len(images[first])
        for wording in wordings:
            names = [wording.format(PLANTS[name]) for name in (first, second)]
            found = margins(encoder, *names, both)
            accuracy = rate(float(((found > 0) == shows).mean()), len(both))
            table.add_row(
                f"{PLANTS[first]}, {PLANTS[second]}",
                f"{len(images[first])} + {len(images[second])}",
                wording.format("…"),
                f"{accuracy.value:.1%}",
                f"{accuracy.low:.1%} to {accuracy.high:.1%}",
                f"{auroc(found, shows):.3f}",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
