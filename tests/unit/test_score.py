from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.fakes import COLOURS, FakeEncoder
from tests.policy_factory import category, compiled_of, policy_of
from worker.compile import compile_policy, texts_of
from worker.errors import Misconfigured
from worker.policy import Category, Decision, Policy, Prompt, margin_digest
from worker.score import CompiledPolicy, decide, decide_batch, score
from worker.types import Float16Rows

ENCODER = FakeEncoder(32)


def compiled(*categories: dict[str, Any], **keys: Any) -> CompiledPolicy:
    return compiled_of(policy_of(*categories, **keys), ENCODER)


def calibrated(*, scale: float, bias: float, **keys: Any) -> dict[str, Any]:
    """A category with a calibration that is good for its margins, in a policy of its own."""
    (only,) = policy_of(category(**keys)).categories
    fitted_for = margin_digest(policy_of(category(**keys)), only, ENCODER.info)
    calibration = {"method": "platt", "scale": scale, "bias": bias, "for": fitted_for}
    return category(calibration=calibration, **keys)


def images(*colours: str) -> Float16Rows:
    pixels = np.array([COLOURS[colour] for colour in colours], dtype=np.uint8)
    return ENCODER.encode_images(pixels[:, None, None, :]).astype(np.float16)


RED, BLUE, RED_AMONG_BLUE = images("red"), images("blue"), images("blue", "red", "blue")


# ---------------------------------------------------------------- the formula


def plain_margin(policy: Policy, category: Category, row: list[float]) -> float:
    """Straight from the formula: one image, one number at a time, no numpy."""
    scale = ENCODER.info.logit_scale

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(math.fsum(x * x for x in vector))
        return [x / length for x in vector]

    def logit(prompt: Prompt) -> float:
        texts = [template.replace("{}", prompt.text) for template in policy.templates]
        vectors = [unit(ENCODER.encode_texts([text])[0].tolist()) for text in texts]
        vector = unit([math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)])
        return scale * math.fsum(a * b for a, b in zip(vector, row, strict=True))

    def aggregate(prompts: tuple[Prompt, ...]) -> float:
        total = math.fsum(prompt.weight for prompt in prompts)
        if category.aggregate == "max":
            return max(logit(prompt) for prompt in prompts)
        if category.aggregate == "mean":
            return math.fsum(p.weight / total * logit(p) for p in prompts)
        return math.log(math.fsum(p.weight / total * math.exp(logit(p)) for p in prompts))

    return aggregate(category.prompts) - aggregate(category.contrast)


@pytest.mark.parametrize("aggregate", ["logmeanexp", "max", "mean"])
def test_scores_equal_a_slow_plain_computation(aggregate: str) -> None:
    weight = 1.0 if aggregate == "max" else 2.5
    policy = policy_of(
        category("first", aggregate=aggregate, prompts=["a", {"text": "b", "weight": weight}, "c"]),
        category("second", prompts=["d", "e"], contrast=[{"text": "f", "weight": 0.1}, "red"]),
        contrast=["g", "h"],
        templates=["a photo of {}", "{}"],
    )
    rows = np.random.default_rng(1).standard_normal((9, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

    scores = score(compiled_of(policy, ENCODER), rows)

    expected = [
        [plain_margin(policy, category, row) for category in policy.categories]
        for row in rows.tolist()
    ]
    # prompt vectors are rounded to 2**-22, which a logit scale of 20 makes some 1e-5
    np.testing.assert_allclose(scores.margins, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scores.probabilities, 1 / (1 + np.exp(-scores.margins)), rtol=1e-12)


def test_calibration_turns_the_margin_into_the_probability() -> None:
    plain = decide(compiled(category()), RED, None).categories[0]
    platt = decide(compiled(calibrated(scale=0.1, bias=-1.0)), RED, None).categories[0]

    assert platt.margin == plain.margin
    assert platt.probability == pytest.approx(1 / (1 + math.exp(-(0.1 * plain.margin - 1.0))))
    assert (platt.calibrated, plain.calibrated) == (True, False)


def test_a_calibration_fitted_for_other_margins_counts_as_none() -> None:
    stale = calibrated(scale=0.1, bias=-1.0) | {"prompts": ["red", "a scarlet thing"]}
    compiled_policy = compiled(stale)
    found = decide(compiled_policy, RED, None).categories[0]

    assert not found.calibrated
    assert found.probability == pytest.approx(1 / (1 + math.exp(-found.margin)))
    assert compiled_policy.uncalibrated == ("colour.red",)


def test_writing_a_prompt_twice_changes_no_bit() -> None:
    once = score(compiled(category(prompts=["red", "a rose"])), RED_AMONG_BLUE)
    twice = score(compiled(category(prompts=["red", "a rose", "red"])), RED_AMONG_BLUE)
    assert once.margins.tobytes() == twice.margins.tobytes()


def test_a_weight_makes_a_prompt_count_more() -> None:
    def margin(weight: float) -> float:
        loud = {"text": "red", "weight": weight}
        return float(score(compiled(category(prompts=[loud, "a rose"])), RED).margins[0, 0])

    assert margin(0.5) < margin(1) < margin(2)


def test_contrasts_of_the_policy_speak_against_every_category() -> None:
    alone = decide(compiled(category()), RED, None).categories[0]
    against = decide(compiled(category(), contrast=["a red photo"]), RED, None).categories[0]

    assert alone.loudest_against == "blue"
    assert against.loudest_against == "a red photo"
    assert against.margin < alone.margin


def test_prompts_of_categories_that_are_off_are_not_asked_for() -> None:
    off = category("off", prompts=["nobody asks"], mode="off")
    assert texts_of(policy_of(category(), off, templates=["{}", "a {}"])) == (
        "a red",
        "red",
        "a blue",
        "blue",
    )


# ---------------------------------------------------------------- thresholds


def decision_at(probability_minus_block: float, **keys: Any) -> Decision:
    """The decision on a red image, with `block` set from its own probability."""
    probability = decide(compiled(calibrated(scale=0.01, bias=0.0)), RED, None).categories[0]
    block = probability.probability - probability_minus_block
    keys = {"review": 0.1, "block": block} | keys
    return decide(compiled(calibrated(scale=0.01, bias=0.0, **keys)), RED, None).decision


def test_a_probability_equal_to_a_threshold_reaches_it() -> None:
    assert decision_at(0.0) is Decision.BLOCK


def test_a_probability_just_below_a_threshold_does_not_reach_it() -> None:
    assert decision_at(-1e-12) is Decision.REVIEW


def test_the_threshold_told_is_the_one_the_action_was_reached_by() -> None:
    def held_against(**keys: Any) -> tuple[Decision, float | None]:
        one = decide(compiled(calibrated(scale=1.0, bias=0.0, **keys)), RED, None).categories[0]
        return one.action, one.threshold

    assert held_against(review=0.1, block=0.2) == (Decision.BLOCK, 0.2)
    assert held_against(review=0.1, block=1.0) == (Decision.REVIEW, 0.1)
    assert held_against(review=1.0, block=1.0) == (Decision.ALLOW, 1.0)


def test_what_no_category_minds_is_allowed_and_decided_by_none() -> None:
    decided = decide(compiled(category()), BLUE, None)
    assert (decided.decision, decided.decided_by) == (Decision.ALLOW, None)


def test_an_uncalibrated_category_asks_for_review_where_it_would_block() -> None:
    found = decide(compiled(category(review=0.2, block=0.5)), RED, None)
    assert found.decision is Decision.REVIEW
    assert found.categories[0].threshold == 0.2


def test_an_uncalibrated_category_that_only_blocks_asks_for_review_at_that_threshold() -> None:
    only_blocks = {key: value for key, value in category(block=0.5).items() if key != "review"}
    found = decide(compiled(only_blocks), RED, None)
    assert found.decision is Decision.REVIEW
    assert found.categories[0].threshold == 0.5


def test_an_uncalibrated_category_blocks_if_its_author_wrote_so() -> None:
    found = decide(compiled(category(block=0.5, block_uncalibrated=True)), RED, None)
    assert found.decision is Decision.BLOCK
    assert not found.categories[0].calibrated


def test_a_tenant_is_held_against_its_own_thresholds() -> None:
    policy = compiled(
        category(block=1.0, block_uncalibrated=True),
        tenants={"strict": {"colour.red": {"block": 0.5}}},
    )
    assert decide(policy, RED, "strict").decision is Decision.BLOCK
    assert decide(policy, RED, "unheard of") == decide(policy, RED, None)
    assert decide(policy, RED, None).decision is Decision.REVIEW


def test_no_tenants_override_lets_an_uncalibrated_category_block() -> None:
    policy = compiled(category(), tenants={"strict": {"colour.red": {"block": 0.5}}})
    assert decide(policy, RED, "strict").decision is Decision.REVIEW


# ---------------------------------------------------------------- several categories and rows


def test_the_severest_action_decides_and_among_equals_the_likeliest() -> None:
    policy = compiled(
        category("likely", review=0.1),
        category("likelier", prompts=["red"], contrast=["green"], review=0.1),
        category(
            "blocks", prompts=["red", "blue"], contrast=["x"], block=0.2, block_uncalibrated=True
        )
        | {"review": 0.1},
    )
    by_id = {one.id: one for one in decide(policy, RED, None).categories}

    assert by_id["blocks"].action is Decision.BLOCK
    assert by_id["blocks"].probability < by_id["likely"].probability
    assert decide(policy, RED, None).decided_by == "blocks"

    without = compiled(category("a", review=0.9), category("b", prompts=["green"], review=0.1))
    assert decide(without, RED, None).decided_by == "a"


def test_a_category_on_trial_is_told_and_decides_nothing() -> None:
    policy = compiled(category("trial", mode="shadow"), category("quiet", prompts=["green"]))
    decided = decide(policy, RED, None)

    assert decided.decision is Decision.ALLOW
    assert [one.id for one in decided.categories] == ["quiet"]
    assert [(one.id, one.action) for one in decided.shadow] == [("trial", Decision.REVIEW)]


def test_a_policy_with_nothing_but_categories_on_trial_allows() -> None:
    decided = decide(compiled(category(mode="shadow")), RED_AMONG_BLUE, None)
    assert (decided.decision, decided.decided_by) == (Decision.ALLOW, None)
    assert decided.worst_row == 1


def test_a_category_that_is_off_is_not_scored() -> None:
    policy = compiled(category("off", mode="off"), category("on", prompts=["green"]))
    decided = decide(policy, RED, None)
    assert [one.id for one in (*decided.categories, *decided.shadow)] == ["on"]


def test_each_category_takes_its_own_worst_row() -> None:
    policy = compiled(
        category("red", review=0.1),
        category("blue", prompts=["blue"], contrast=["red"], review=0.999),
        category("white", prompts=["white"], contrast=["black"], review=0.999),
    )
    rows = images("black", "red", "blue", "white")
    decided = decide(policy, rows, None)

    assert [one.row for one in decided.categories] == [1, 2, 3]
    for row, one in zip([1, 2, 3], decided.categories, strict=True):
        alone = {other.id: other for other in decide(policy, rows[row : row + 1], None).categories}
        assert one.margin == alone[one.id].margin


def test_the_worst_row_of_an_image_is_that_of_the_category_that_decided() -> None:
    decided = decide(compiled(category()), RED_AMONG_BLUE, None)
    assert (decided.decided_by, decided.worst_row) == ("colour.red", 1)


def test_the_prompts_told_are_those_that_spoke_loudest() -> None:
    policy = compiled(category(prompts=["red", "white"], contrast=["blue", "black"]))
    for colour, loudest_for, loudest_against in [
        ("red", "red", "black"),
        ("white", "white", "blue"),
    ]:
        (found,) = decide(policy, images(colour), None).categories
        assert (found.loudest_for, found.loudest_against) == (loudest_for, loudest_against)


def test_a_batch_decides_as_one_by_one() -> None:
    policy = compiled(category(), tenants={"strict": {"colour.red": {"review": 0.01}}})
    batch = [RED, BLUE, RED_AMONG_BLUE, images("green", "black")]
    tenants = [None, "strict", None, "strict"]

    assert decide_batch(policy, batch, tenants) == [
        decide(policy, rows, tenant) for rows, tenant in zip(batch, tenants, strict=True)
    ]
    assert decide_batch(policy, [], []) == []


# ---------------------------------------------------------------- what is refused


def test_an_image_without_rows_is_never_decided_on() -> None:
    with pytest.raises(ValueError, match="was not examined"):
        decide(compiled(category()), RED[:0], None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_never_decided_on(bad: float) -> None:
    rows = RED.copy()
    rows[0, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        decide(compiled(category()), rows, None)


@pytest.mark.parametrize(
    "rows", [RED.astype(np.float32), RED[:, :-1], RED[0]], ids=["type", "dimension", "one row"]
)
def test_rows_of_another_shape_or_type_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="expected rows of 32 float16"):
        score(compiled(category()), rows)


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_a_prompt_that_the_model_has_no_direction_for_is_refused_by_name(fill: float) -> None:
    policy = policy_of(category())
    embeddings = {text: np.full(32, fill, dtype=np.float32) for text in texts_of(policy)}
    with pytest.raises(Misconfigured, match="no direction for the prompt 'red'"):
        compile_policy(policy, ENCODER.info, embeddings)
