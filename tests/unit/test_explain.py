"""What is said of why is what deciding again finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of, with_head
from worker.authoring.explain import CategoryExplained, Explained, explain, margin_at
from worker.compile import texts_of
from worker.policy import Calibration, Decision, HashList, Head, Policy, margin_digest
from worker.score import decide
from worker.types import Embedding, EmbeddingKey, FramePlan, ImageFacts

ENCODER = FakeEncoder()
HASH = "0123456789abcdef" * 4
CLASHING = category(
    prompts=["red", {"text": "black", "weight": 2}], contrast=["blue", "green"], review=0.5
)


def embedding(*colours: tuple[int, int, int], perceptual_hash: str | None = None) -> Embedding:
    """Of an image with a frame of each colour."""
    pixels = np.array(colours, dtype=np.uint8)[:, None, None, :].repeat(8, 1).repeat(8, 2)
    rows = ENCODER.encode_images(pixels).astype(np.float16)
    facts = ImageFacts(
        sha256="0" * 64,
        perceptual_hash=perceptual_hash,
        media_type="image/png",
        width=8,
        height=8,
        bytes=1,
        frames=len(rows),
        rows=tuple(range(len(rows))),
    )
    key = EmbeddingKey(facts.sha256, ENCODER.info.digest, FramePlan().digest)
    return Embedding(key, rows, facts)


RED, BLUE, PURPLE = (255, 0, 0), (0, 0, 255), (140, 0, 130)


def explained(policy: Policy, image: Embedding, tenant: str | None = None) -> Explained:
    texts = texts_of(policy)
    embeddings = dict(zip(texts, ENCODER.encode_texts(texts), strict=True))
    return explain(compiled_of(policy, ENCODER), ENCODER.info, embeddings, image, tenant)


def one(policy: Policy, image: Embedding, tenant: str | None = None) -> CategoryExplained:
    [found] = explained(policy, image, tenant).categories
    return found


def calibrated(policy: Policy, **keys: Any) -> Policy:
    """The same with a calibration of its first category that is in force."""
    first = policy.categories[0]
    fitted = Calibration(margin_digest(policy, first, ENCODER.info), **keys)
    return replace(policy, categories=(replace(first, calibration=fitted), *policy.categories[1:]))


def test_each_side_is_loudest_first_and_weights_count_as_in_the_margin() -> None:
    found = one(policy_of(CLASHING), embedding(PURPLE))
    for side in ("prompt", "contrast"):
        loudness = [s.logit + np.log(s.weight) for s in found.spoken if s.side == side]
        assert len(loudness) == 2
        assert loudness == sorted(loudness, reverse=True)


def test_decision_is_that_of_the_scores() -> None:
    policy = policy_of(CLASHING, category("other", prompts=["green"], contrast=["white"]))
    image = embedding(PURPLE)
    decided = decide(compiled_of(policy, ENCODER), image.rows, None, image.facts.rows)
    found = explained(policy, image)
    assert (found.decision, found.decided_by) == (decided.decision, decided.decided_by)
    assert [c.probability for c in found.categories] == [c.probability for c in decided.categories]


@settings(deadline=None)
@given(
    st.permutations(["red", "green", "blue", "black", "white", "a cup"]),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from(["logmeanexp", "max", "mean"]),
)
def test_without_a_text_is_what_a_policy_without_it_says(
    texts: list[str], colour: tuple[int, int, int], aggregate: str
) -> None:
    sides = {"prompts": texts[:3], "contrast": texts[3:]}
    image = embedding(colour)
    found = one(policy_of(category(**sides, aggregate=aggregate)), image)
    for spoken in found.spoken:
        rest = {side: [text for text in of if text != spoken.text] for side, of in sides.items()}
        policy = policy_of(category(**rest, aggregate=aggregate))
        [score] = decide(compiled_of(policy, ENCODER), image.rows, None).categories
        assert spoken.without is not None
        assert spoken.without.margin == pytest.approx(score.margin)
        assert spoken.without.action == score.action


def test_only_text_of_its_side_cannot_be_left_out() -> None:
    found = one(policy_of(category()), embedding(RED))
    assert [spoken.without for spoken in found.spoken] == [None, None]


def test_text_that_decides_is_named() -> None:
    policy = policy_of(category(prompts=["red", "white"], contrast=["blue", "black"]))
    found = one(policy, embedding(RED))
    assert found.action is Decision.REVIEW
    assert [spoken.text for spoken in found.decisive] == ["red"]


def test_calibration_is_kept_to_tell_what_the_wording_alone_does() -> None:
    plain = policy_of(CLASHING)
    fitted = calibrated(plain, scale=0.5, bias=-1.0)
    image = embedding(PURPLE)
    for before, after in zip(one(plain, image).spoken, one(fitted, image).spoken, strict=True):
        assert before.without is not None and after.without is not None
        assert after.without.margin == before.without.margin
        z = 0.5 * after.without.margin - 1.0
        assert after.without.probability == pytest.approx(1 / (1 + np.exp(-z)))


def test_exception_says_what_it_took_off() -> None:
    with_it = category(exceptions=[{"prompts": ["red"], "weight": 0.5}], prompts=["black"])
    without = category(prompts=["black"])
    image = embedding(RED)
    found = one(policy_of(with_it), image)
    [exception] = found.exceptions
    assert exception.texts == ("red",)
    assert exception.taken_off > 0
    bare = one(policy_of(without), image)
    assert found.margin == pytest.approx(bare.margin - exception.taken_off)
    [spoken] = [spoken for spoken in found.spoken if spoken.side == "exception"]
    assert spoken.without is not None
    assert spoken.without.margin == pytest.approx(bare.margin)


def test_head_is_heard_beside_the_prompts() -> None:
    vector = np.zeros(32)
    vector[3] = 5.0
    head = Head("h", "sha256:0", ENCODER.info.space, tuple(vector), bias=0.5, weight=0.25)
    policy = with_head(policy_of(CLASHING), "colour.red", head)
    image = embedding(PURPLE)
    found, bare = one(policy, image), one(policy_of(CLASHING), image)
    assert found.head is not None
    logit = float(image.rows[0].astype(float) @ vector) + 0.5
    assert (found.head.file, found.head.weight) == ("h", 0.25)
    assert found.head.logit == pytest.approx(logit, abs=1e-4)
    assert found.margin == pytest.approx(0.75 * bare.margin + 0.25 * found.head.logit)
    alone = one(
        with_head(policy_of(CLASHING), "colour.red", replace(head, weight=1.0), alone=True), image
    )
    assert alone.spoken == ()
    assert alone.head is not None and alone.margin == pytest.approx(alone.head.logit)


def test_tenant_is_held_against_its_own_thresholds() -> None:
    policy = policy_of(CLASHING, tenants={"kids": {"colour.red": {"review": 0.001}}})
    assert one(policy, embedding(BLUE)).thresholds.review == 0.5
    assert one(policy, embedding(BLUE), "kids").thresholds.review == 0.001


def test_block_of_an_uncalibrated_category_is_held_back() -> None:
    policy = policy_of(category(review=0.5, block=0.6))
    assert one(policy, embedding(RED)).held_back == 0.6
    assert one(calibrated(policy), embedding(RED)).held_back is None


def test_frame_that_decided_is_named() -> None:
    policy = policy_of(category())
    assert one(policy, embedding(BLUE, BLUE, RED, BLUE)).frame == 2


def test_category_on_trial_is_explained_and_takes_no_part() -> None:
    policy = policy_of(category(mode="shadow"), category("other", prompts=["green"]))
    found = explained(policy, embedding(RED))
    assert [c.mode for c in found.categories] == ["shadow", "enforce"]
    assert found.decision is Decision.ALLOW


def test_list_decides_before_the_model() -> None:
    known = HashList("known", Decision.BLOCK, 31, "known.txt", "sha256:0", frozenset({HASH}))
    policy = replace(policy_of(category()), lists=(known,))
    found = explained(policy, embedding(BLUE, perceptual_hash=HASH))
    assert (found.decision, found.decided_by) == (Decision.BLOCK, "known")
    assert found.listed is not None and found.listed.distance == 0
    assert explained(policy, embedding(BLUE)).listed is None


# ---------------------------------------------------------------- what it would take


def test_allowed_image_is_told_what_review_and_block_would_take() -> None:
    policy = calibrated(policy_of(category(review=0.5, block=0.75)))
    found = one(policy, embedding(BLUE))
    assert [(n.action, n.side, n.threshold) for n in found.needed] == [
        (Decision.REVIEW, "from", 0.5),
        (Decision.BLOCK, "from", 0.75),
    ]
    assert [n.by for n in found.needed] == [0.5 - found.probability, 0.75 - found.probability]
    assert [n.margin for n in found.needed] == [pytest.approx(0.0), pytest.approx(np.log(3))]


def test_blocked_image_is_told_what_allow_and_review_would_take() -> None:
    policy = calibrated(policy_of(category(review=0.5, block=0.75)))
    assert [(n.action, n.side, n.threshold) for n in one(policy, embedding(RED)).needed] == [
        (Decision.ALLOW, "below", 0.5),
        (Decision.REVIEW, "below", 0.75),
    ]


def test_category_that_only_blocks_is_never_told_to_review() -> None:
    policy = calibrated(policy_of({**category(block=0.75), "review": 0.75}))
    assert [n.action for n in one(policy, embedding(BLUE)).needed] == [Decision.BLOCK]
    assert [n.action for n in one(policy, embedding(RED)).needed] == [Decision.ALLOW]


FITTED = st.one_of(
    st.none(),
    st.builds(
        Calibration,
        fitted_for=st.just(""),
        scale=st.floats(0.01, 10),
        bias=st.floats(-5, 5),
    ),
    st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 1)), min_size=2, max_size=6).map(
        lambda points: Calibration(
            "",
            "isotonic",
            points=tuple(
                zip(
                    np.cumsum([abs(m) + 0.5 for m, _ in points]).tolist(),
                    sorted(p for _, p in points),
                    strict=True,
                )
            ),
        )
    ),
)


def probability(calibration: Calibration | None, margin: float) -> float:
    if calibration is not None and calibration.method == "isotonic":
        margins, probabilities = zip(*calibration.points, strict=True)
        return float(np.interp(margin, margins, probabilities))
    scale, bias = (calibration.scale, calibration.bias) if calibration else (1.0, 0.0)
    return float(1 / (1 + np.exp(-(scale * margin + bias))))


@settings(deadline=None)
@given(FITTED, st.floats(0.01, 0.99))
def test_margin_that_it_takes_is_where_the_probability_is_reached(
    calibration: Calibration | None, wanted: float
) -> None:
    margin = margin_at(calibration, wanted)
    if margin is None:
        assert calibration is not None
        reached = [probability for _, probability in calibration.points]
        assert wanted > reached[-1] or wanted <= reached[0]
    else:
        assert probability(calibration, margin) == pytest.approx(wanted, abs=1e-6)
        assert probability(calibration, margin - 1e-3) <= wanted


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_no_margin_is_said_to_reach_certainty(edge: float) -> None:
    assert margin_at(None, edge) is None
