"""Runs of ``policy calibrate`` for tests of what is made of them, without images or a model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.authoring.examples import Example, known
from worker.authoring.results import Calibrated, Fit, Interval, ThresholdReport
from worker.policy import Calibration
from worker.types import Embedding, EmbeddingKey, ImageFacts

ENCODER = FakeEncoder()
PROMPTS = "red", "blue"


def example(shows: Mapping[str, bool], **keys: Any) -> Example:
    """Its embedding is that of red where it shows anything."""
    [row] = ENCODER.encode_texts([PROMPTS[not any(shows.values())]])
    width, height = keys.pop("size", (640, 480))
    sha256 = hashlib.sha256(keys.get("name", "a.jpg").encode()).hexdigest()
    embedding = Embedding(
        EmbeddingKey(sha256, "model", "plan"),
        row[None].astype(np.float16),
        ImageFacts(sha256, None, "image/jpeg", width, height, 1000, 1, (0,)),
    )
    return Example(**{"name": "a.jpg", "label": "x", **keys}, embedding=embedding, shows=shows)


def fit(examples: Sequence[Example], id: str = "colour.red", **keys: Any) -> Fit:
    """Held-out probabilities that tell the two kinds apart, but not always; equal seeds give equal
    ones."""
    places, labels, weights = known(examples, id)
    margins = np.random.default_rng(3).normal(np.where(labels, 2.0, -2.0), 1.5)
    made: dict[str, Any] = {
        "category": id,
        "places": places,
        "labels": labels,
        "weights": weights,
        "margins": margins,
        "calibration": Calibration("sha256:" + "a" * 64, scale=1.2, bias=-0.3),
        "folds": np.arange(len(labels)) % 5,
        "held_out": 1 / (1 + np.exp(-margins)),
        "auroc": Interval(0.94, 0.91, 0.96),
        "average_precision": Interval(0.81, 0.7, 0.9),
        "ece": Interval(0.02, 0.01, 0.04),
        "thresholds": (
            ThresholdReport(
                "review", 0.4, None, Interval(0.05, 0.03, 0.08), Interval(0.9, 0.85, 0.94)
            ),
            ThresholdReport(
                "block", 0.9, None, Interval(0.002, 0.001, 0.01), Interval(0.5, 0.4, 0.6)
            ),
        ),
    }
    return Fit(**{**made, **keys})


def examples(number: int = 200, **keys: Any) -> list[Example]:
    """Every fourth shows red."""
    return [
        example({"colour.red": n % 4 == 0}, **{"name": f"{n}.jpg", **keys}) for n in range(number)
    ]


def calibrated(
    of: Sequence[Example] | None = None, fits: Sequence[Fit] | None = None, **keys: Any
) -> Calibrated:
    of = examples() if of is None else of
    policy = policy_of(category(prompts=[PROMPTS[0]], contrast=[PROMPTS[1]]))
    made: dict[str, Any] = {
        "compiled": compiled_of(policy, ENCODER),
        "examples": of,
        "fits": [fit(of)] if fits is None else fits,
        "data": "sha256:" + "d" * 64,
    }
    return Calibrated(**{**made, **keys})


def thumbnail(size: tuple[int, int] = (160, 120)) -> bytes:
    jpeg = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 30)).resize(size).save(jpeg, "JPEG", quality=75)
    return jpeg.getvalue()
