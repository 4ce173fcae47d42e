"""What heads tell on labelled photos that were held out, with the pocket model.

Near-duplicates are held out together, and whole sources of those that do not show a category. What
shows it comes from one source, except for firearms: other sources' photos will do worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pytest

from worker.authoring.calibrate import Options
from worker.authoring.examples import Example
from worker.authoring.fit_head import Proved, alone, prove, teach
from worker.compile import compile_policy, texts_of
from worker.embed import OpenClipEncoder
from worker.heads import parse_head
from worker.policy import Policy

#: At least so much AUROC, and no more calibration error.
EXPECTED = {
    "weapons.firearm": 0.95,
    "regulated.alcohol": 0.96,
    "regulated.smoking": 0.92,
    "hazard.fire": 0.99,
}
MOST_ECE = 0.05

pytestmark = pytest.mark.timeout(600)


def texts_by(pocket: OpenClipEncoder, policy: Policy) -> dict:  # type: ignore[type-arg]
    texts = texts_of(policy)
    return dict(zip(texts, pocket.encode_texts(texts), strict=True))


@pytest.fixture(scope="module", params=EXPECTED)
def proved(
    request: pytest.FixtureRequest,
    pocket: OpenClipEncoder,
    shipped: Policy,
    photos: Sequence[Example],
) -> Proved:
    """A head as it ships, fitted anew."""
    taught = teach(photos, request.param, pocket.info, date(2026, 11, 21))
    policy = alone(shipped, request.param)
    [category] = policy.categories
    assert category.head is not None
    anew = parse_head(taught.content, category.head.file, category.head.weight)
    policy = replace(policy, categories=(replace(category, head=anew),))
    return prove(taught, policy, pocket.info, texts_by(pocket, policy), Options())


def test_head_tells_photos_that_it_was_not_fitted_on(proved: Proved) -> None:
    assert proved.fit.auroc is not None
    print(f"{proved.fit.category}: AUROC {proved.fit.auroc}")
    assert proved.fit.auroc.value >= EXPECTED[proved.fit.category]


def test_head_does_better_than_prompts_alone(proved: Proved) -> None:
    if not proved.others:
        pytest.skip("the category has no prompts")
    alone, fit = proved.others[0.0], proved.fit
    assert alone.auroc is not None and fit.auroc is not None
    assert fit.auroc.value > alone.auroc.value


def test_probabilities_can_be_believed(proved: Proved) -> None:
    assert proved.fit.ece is not None
    print(f"{proved.fit.category}: ECE {proved.fit.ece}")
    assert proved.fit.ece.value <= MOST_ECE


def test_every_category_that_ships_is_calibrated_for_the_model_as_it_is(
    pocket: OpenClipEncoder, shipped: Policy
) -> None:
    compiled = compile_policy(shipped, pocket.info, texts_by(pocket, shipped))
    assert compiled.uncalibrated == ()
