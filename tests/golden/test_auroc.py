"""What the pocket model can tell by prompts alone, on labelled photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from worker.authoring.examples import Example, Floats
from worker.authoring.measures import auroc
from worker.compile import compile_policy, texts_of
from worker.embed import OpenClipEncoder
from worker.policy import Policy, Prompt
from worker.score import image_margins

#: Not in the shipped policy, because the model cannot tell it well enough; held here all the same.
SMOKING = ("a lighter", "a cigarette", "a harmonica held to the mouth")


@pytest.fixture(scope="module")
def policy(shipped: Policy) -> Policy:
    """By prompts alone."""
    categories = [replace(each, head=None) for each in shipped.categories if each.prompts]
    last = categories[-1]
    smoking = replace(last, id="smoking", prompts=tuple(map(Prompt, SMOKING)), calibration=None)
    return replace(shipped, categories=(*categories, smoking))


@pytest.fixture(scope="module")
def margins(pocket: OpenClipEncoder, policy: Policy, photos: Sequence[Example]) -> Floats:
    """[images, categories]"""
    texts = texts_of(policy)
    embeddings = dict(zip(texts, pocket.encode_texts(texts), strict=True))
    compiled = compile_policy(policy, pocket.info, embeddings)
    return image_margins(compiled, [photo.embedding for photo in photos])


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
    margins: Floats,
    policy: Policy,
    photos: Sequence[Example],
    label: str,
    category: str,
    at_least: float,
) -> None:
    column = [c.id for c in policy.categories].index(category)
    shows = np.array([photo.label == label for photo in photos])
    assert auroc(margins[:, column], shows) >= at_least
