"""What the pocket model can tell by prompts alone, on labelled photos."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worker.compile import compile_policy, texts_of
from worker.embed import OpenClipEncoder
from worker.imaging import Limits, decode
from worker.platt import auroc
from worker.policy import Policy, Prompt
from worker.policy_yaml import load_policy
from worker.score import score

POCKET = Path(__file__).resolve().parents[2] / "policies" / "pocket.yaml"
LIMITS = Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)
#: Not in the shipped policy, because the model cannot tell it well enough; held here all the same.
SMOKING = ("a lighter", "a cigarette", "a harmonica held to the mouth")


@pytest.fixture(scope="module")
def policy() -> Policy:
    shipped = load_policy(POCKET)
    last = shipped.categories[-1]
    smoking = replace(last, id="smoking", prompts=tuple(map(Prompt, SMOKING)), calibration=None)
    return replace(shipped, categories=(*shipped.categories, smoking))


@pytest.fixture(scope="module")
def scored(pocket: OpenClipEncoder, policy: Policy, data: Path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Margins [images, categories] and labels [images]."""
    folder = data / "eval"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = []
    for row in rows:
        body = (folder / row["path"]).read_bytes()
        sha256 = hashlib.sha256(body).hexdigest()
        pixels.append(decode(body, sha256, pocket.info.preprocess, policy.plan, LIMITS).pixels[:1])
    embeddings = pocket.encode_images(np.concatenate(pixels)).astype(np.float16)
    texts = texts_of(policy)
    compiled = compile_policy(
        policy, pocket.info, dict(zip(texts, pocket.encode_texts(texts), strict=True))
    )
    return score(compiled, embeddings).margins, np.array([row["label"] for row in rows])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("label", "category", "at_least"),
    [
        ("gun", "weapons.firearm", 0.95),
        ("alcohol", "regulated.alcohol", 0.83),
        ("qr_code", "content.qr_code", 0.80),
        ("fire_smoke", "hazard.fire", 0.76),
        ("smoking", "smoking", 0.52),
    ],
)
def test_category_is_told_from_all_others(
    scored: tuple[np.ndarray, np.ndarray],  # type: ignore[type-arg]
    policy: Policy,
    label: str,
    category: str,
    at_least: float,
) -> None:
    margins, labels = scored
    column = [c.id for c in policy.categories].index(category)
    assert auroc(margins[:, column], labels == label) >= at_least
