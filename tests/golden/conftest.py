from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from worker.authoring.examples import Example
from worker.authoring.labels import read_labels, shown_by
from worker.embed import OpenClipEncoder, load_encoder
from worker.imaging import Limits, decode
from worker.policy import Policy
from worker.policy_yaml import load_policy
from worker.types import Embedding, EmbeddingKey

POCKET = Path(__file__).resolve().parents[2] / "policies" / "pocket.yaml"
LIMITS = Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)
MEANINGS = {
    "gun": "weapons.firearm",
    "fire_smoke": "hazard.fire",
    "qr_code": "content.qr_code",
}


@pytest.fixture(scope="session")
def pocket() -> OpenClipEncoder:
    """The pocket model; it takes seconds to load."""
    return load_encoder("pocket")


@pytest.fixture(scope="session")
def shipped() -> Policy:
    return load_policy(POCKET)


@pytest.fixture(scope="session")
def photos(pocket: OpenClipEncoder, shipped: Policy, data: Path) -> list[Example]:
    """The labelled photos, embedded. Their sources are repositories."""
    given = {label: id_ for label, id_ in MEANINGS.items() if id_ in _ids(shipped)}
    labels = read_labels(
        data / "eval" / "labels.csv", shipped.categories, given=given, source_until=":"
    )
    plan, decoded = shipped.plan, []
    for image in labels.images:
        assert image.path is not None
        body = image.path.read_bytes()
        sha256 = hashlib.sha256(body).hexdigest()
        decoded.append(decode(body, sha256, pocket.info.preprocess, plan, LIMITS))
    pixels = np.concatenate([one.pixels for one in decoded])
    rows = pocket.encode_images(pixels).astype(np.float16)
    ends = np.cumsum([len(one.pixels) for one in decoded])
    return [
        Example(
            name=image.name,
            label=image.label,
            embedding=Embedding(
                EmbeddingKey(one.facts.sha256, pocket.info.digest, plan.digest), of, one.facts
            ),
            shows=shown_by(image.label, labels, shipped.categories),
            otherwise=None,
            source=image.source,
        )
        for image, one, of in zip(labels.images, decoded, np.split(rows, ends[:-1]), strict=True)
    ]


def _ids(policy: Policy) -> set[str]:
    return {category.id for category in policy.categories}
