"""Embeddings of fixed photos and texts against stored ones.

Stored on one machine, held to on all: processors and versions of torch differ in the last bits, so
each number may be off by ``TOLERANCE`` and no more. ``python -m tests.golden.test_embeddings``
stores them anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.demo.photos import jpeg, photos
from worker.embed import OpenClipEncoder, load_encoder
from worker.imaging import Limits, decode
from worker.types import FramePlan

STORED = Path(__file__).with_name("embeddings.json")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
TEXTS = (
    "a photo of a cat",
    "a cup of coffee",
    "a handgun",
    "ein Satz auf Deutsch, mit Umlauten: äöü",
)
TOLERANCE = 2e-3  # a unit vector of 384 numbers has them near 0.05; cosines then agree to 1e-3
LIMITS = Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)


def embedded(encoder: OpenClipEncoder) -> dict[str, np.ndarray[Any, Any]]:
    taken = photos()
    pixels = [
        decode(jpeg(taken[name]), "0" * 64, encoder.info.preprocess, FramePlan(), LIMITS).pixels[0]
        for name in PHOTOS
    ]
    images = encoder.encode_images(np.stack(pixels))
    texts = encoder.encode_texts(TEXTS)
    return dict(zip((*PHOTOS, *TEXTS), np.concatenate([images, texts]), strict=True))


@pytest.fixture(scope="module")
def now(pocket: OpenClipEncoder) -> dict[str, np.ndarray[Any, Any]]:
    return embedded(pocket)


@pytest.mark.parametrize("name", [*PHOTOS, *TEXTS])
def test_embedding_is_the_stored_one(name: str, now: dict[str, np.ndarray[Any, Any]]) -> None:
    stored = np.array(json.loads(STORED.read_text())["embeddings"][name])
    assert np.abs(now[name] - stored).max() <= TOLERANCE
    assert now[name] @ stored > 0.999


def test_weights_and_preprocessing_are_the_stored_ones(pocket: OpenClipEncoder) -> None:
    stored = json.loads(STORED.read_text())
    assert pocket.info.weights_digest == stored["weights_digest"]
    assert pocket.info.preprocess.digest == stored["preprocess_digest"]


def test_photos_are_nearest_to_the_text_that_names_them(
    now: dict[str, np.ndarray[Any, Any]],
) -> None:
    def nearest(photo: str) -> str:
        return max(TEXTS, key=lambda text: float(now[photo] @ now[text]))

    assert nearest("chelsea") == "a photo of a cat"
    assert nearest("coffee") == "a cup of coffee"


def store() -> None:
    encoder = load_encoder("pocket")
    stored = {
        "weights_digest": encoder.info.weights_digest,
        "preprocess_digest": encoder.info.preprocess.digest,
        "embeddings": {
            name: [round(float(value), 5) for value in row]
            for name, row in embedded(encoder).items()
        },
    }
    STORED.write_text(json.dumps(stored, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    store()
