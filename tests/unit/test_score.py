from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import COLOURS, FakeEncoder
from tests.policy_factory import category, compiled_of, fitted, policy_of, with_head
from worker.compile import compile_policy, texts_of
from worker.compiled import CompiledPolicy
from worker.errors import Misconfigured
from worker.policy import Calibration, Category, Decision, Head, Policy, Prompt, margin_digest
from worker.score import CategoryScore, decide, image_margins, logits, score, terms
from worker.types import Embedding, EmbeddingKey, Float16Rows, ImageFacts

ENCODER = FakeEncoder(32)


def compiled(*categories: dict[str, Any], **keys: Any) -> CompiledPolicy:
    return compiled_of(policy_of(*categories, **keys), ENCODER)


def calibrated(*, scale: float, bias: float, **keys: Any) -> dict[str, Any]:
    """A category with a calibration that is good for its margins, in a policy of its own."""
    (only,) = policy_of(category(**keys)).categories
    fitted_for = margin_digest(policy_of(category(**keys)), only, ENCODER.info)
    calibration = {"method": "platt", "scale": scale, "bias": bias, "for": fitted_for}
    return category(calibration=calibration, **keys)


def scored_by(calibration: Calibration, rows: Float16Rows) -> CategoryScore:
    policy = fitted(policy_of(category()), ENCODER.info, {"colour.red": calibration})
    return decide(compiled_of(policy, ENCODER), rows, None).categories[0]


def images(*colours: str) -> Float16Rows:
    pixels = np.array([COLOURS[colour] for colour in colours], dtype=np.uint8)
    return ENCODER.encode_images(pixels[:, None, None, :]).astype(np.float16)


def embedding(rows: Float16Rows, frames: tuple[int, ...]) -> Embedding:
    facts = ImageFacts("0" * 64, None, "image/gif", 8, 8, 100, max(frames) + 1, frames)
    return Embedding(EmbeddingKey("0" * 64, ENCODER.info.digest, "plan"), rows, facts)


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

    margin = 0.0
    share = category.head.weight if category.head else 0.0
    if category.prompts:
        margin += (1 - share) * (aggregate(category.prompts) - aggregate(category.contrast))
    if head := category.head:
        products = [a * b for a, b in zip(head.vector, row, strict=True)]
        margin += share * (math.fsum(products) + head.bias)
    for exception in category.exceptions:
        lead = aggregate(exception.prompts) - aggregate(category.contrast)
        margin -= exception.weight * max(0.0, lead)
    return margin


def random_rows(count: int, seed: int = 1) -> Float16Rows:
    rows = np.random.default_rng(seed).standard_normal((count, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def head(weight: float = 1.0, *, length: float = 30.0, seed: int = 3) -> Head:
    vector = length * random_rows(1, seed)[0].astype(np.float64)
    return Head("h", "sha256:h", ENCODER.info.space, tuple(vector.tolist()), -0.5, weight)


@pytest.mark.parametrize("aggregate", ["logmeanexp", "max", "mean"])
def test_scores_equal_a_slow_plain_computation(aggregate: str) -> None:
    weight = 1.0 if aggregate == "max" else 2.5
    policy = policy_of(
        category("first", aggregate=aggregate, prompts=["a", {"text": "b", "weight": weight}, "c"]),
        category("second", prompts=["d", "e"], contrast=[{"text": "f", "weight": 0.1}, "red"]),
        contrast=["g", "h"],
        templates=["a photo of {}", "{}"],
    )
    rows = random_rows(9)

    scores = score(compiled_of(policy, ENCODER), rows)

    expected = [
        [plain_margin(policy, category, row) for category in policy.categories]
        for row in rows.tolist()
    ]
    # prompt vectors are rounded to 2**-22, which a logit scale of 20 makes some 1e-5
    np.testing.assert_allclose(scores.margins, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scores.probabilities, 1 / (1 + np.exp(-scores.margins)), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["logmeanexp", "max", "mean"])
def test_margins_with_heads_and_exceptions_equal_a_slow_plain_computation(aggregate: str) -> None:
    exceptions = ["x", {"prompts": ["y", "z"], "weight": 0.5}]
    policy = policy_of(
        category("plain", aggregate=aggregate),
        category("dampened", aggregate=aggregate, exceptions=exceptions),
        category("blended", aggregate=aggregate, exceptions=["w"]),
        category("headed", aggregate=aggregate),
        category("both", aggregate=aggregate, exceptions=exceptions),
        contrast=["g", "h"],
        templates=["a photo of {}", "{}"],
    )
    policy = with_head(policy, "blended", head(0.7))
    policy = with_head(policy, "headed", head(seed=4), alone=True)
    policy = with_head(policy, "both", head(seed=5), alone=True)
    rows = random_rows(40)

    found = terms(compiled := compiled_of(policy, ENCODER), logits(compiled, rows))

    expected = [
        [plain_margin(policy, one, row) for one in policy.categories] for row in rows.tolist()
    ]
    np.testing.assert_allclose(found.margins, expected, rtol=0, atol=1e-4)
    assert (found.dampening > 0).any(axis=0).all()
    assert (found.dampening == 0).any(axis=0).all()


def test_calibration_turns_the_margin_into_the_probability() -> None:
    plain = decide(compiled(category()), RED, None).categories[0]
    platt = decide(compiled(calibrated(scale=0.1, bias=-1.0)), RED, None).categories[0]

    assert platt.margin == plain.margin
    assert platt.probability == pytest.approx(1 / (1 + math.exp(-(0.1 * plain.margin - 1.0))))
    assert (platt.calibrated, plain.calibrated) == (True, False)


def test_temperature_is_a_scale_alone() -> None:
    plain = decide(compiled(category()), RED, None).categories[0]
    found = scored_by(Calibration("", "temperature", scale=0.1), RED)
    assert found.probability == pytest.approx(1 / (1 + math.exp(-0.1 * plain.margin)))


def test_isotonic_is_a_line_through_its_points_and_level_beyond_them() -> None:
    margin = decide(compiled(category()), RED, None).categories[0].margin
    steps = [(margin - 3, 0.1), (margin - 1, 0.2), (margin + 1, 0.8)]

    def probability(*points: tuple[float, float]) -> float:
        return scored_by(Calibration("", "isotonic", points=points), RED).probability

    assert probability(*steps) == pytest.approx(0.5)
    assert probability(*((m - 9, p) for m, p in steps)) == 0.8
    assert probability(*((m + 9, p) for m, p in steps)) == 0.1


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


def test_an_exception_takes_off_its_lead_over_the_contrasts_and_no_more() -> None:
    plain = decide(compiled(category()), RED, None).categories[0]
    beaten = decide(
        compiled(category(exceptions=["blue paint"], contrast=["blue", "red sky"])), BLUE, None
    )
    without = decide(compiled(category(contrast=["blue", "red sky"])), BLUE, None)
    dampened = decide(compiled(category(exceptions=["a red rose"])), RED, None).categories[0]

    assert dampened.margin == pytest.approx(0.0, abs=1e-6)  # the rose is as red as red
    assert dampened.margin < plain.margin
    assert without.categories[0].margin > beaten.categories[0].margin
    assert decide(compiled(category(exceptions=["blue paint"])), RED, None).categories[
        0
    ].margin == (plain.margin)


def test_an_exceptions_weight_scales_what_it_takes_off() -> None:
    def margin(weight: float) -> float:
        exceptions = [{"prompts": ["a red rose"], "weight": weight}]
        return decide(compiled(category(exceptions=exceptions)), RED, None).categories[0].margin

    plain = decide(compiled(category()), RED, None).categories[0].margin
    assert plain - margin(0.5) == pytest.approx((plain - margin(1.0)) / 2)


def test_the_exception_told_is_the_one_that_took_off_most_by_its_loudest_text() -> None:
    exceptions = ["white", {"prompts": ["a red rose", "snow"]}, "black"]
    policy = compiled(category(contrast=["green"], exceptions=exceptions))
    [red] = decide(policy, RED, None).categories
    assert red.dampened_by == "a red rose"


def test_an_exception_that_took_off_nothing_is_not_told() -> None:
    [red] = decide(compiled(category(exceptions=["blue paint"])), RED, None).categories
    assert red.dampened_by is None


def test_a_head_alone_has_no_loudest_prompts() -> None:
    policy = with_head(policy_of(category()), "colour.red", head(), alone=True)
    [found] = decide(compiled_of(policy, ENCODER), RED, None).categories
    assert (found.loudest_for, found.loudest_against, found.dampened_by) == (None, None, None)


def test_a_policy_of_heads_alone_needs_no_texts() -> None:
    policy = with_head(policy_of(category()), "colour.red", head(), alone=True)
    assert texts_of(policy) == ()
    assert np.isfinite(score(compile_policy(policy, ENCODER.info, {}), RED).margins).all()


def test_an_exception_of_a_head_alone_is_held_against_the_contrasts() -> None:
    policy = policy_of(category(exceptions=["a red rose"]))
    policy = with_head(policy, "colour.red", head(), alone=True)
    [found] = decide(compiled_of(policy, ENCODER), RED, None).categories
    assert (found.loudest_for, found.loudest_against) == (None, "blue")
    assert found.dampened_by == "a red rose"


def test_severity_is_the_highest_band_that_the_probability_reaches() -> None:
    probability = decide(compiled(calibrated(scale=0.01, bias=0.0)), RED, None).categories[0]

    def severity(**bands: float) -> str | None:
        keys = calibrated(scale=0.01, bias=0.0, severity=bands)
        return decide(compiled(keys), RED, None).categories[0].severity

    reached = probability.probability
    assert severity(low=0.3, high=reached, top=1.0) == "high"
    assert severity(low=0.3, high=reached + 1e-9) == "low"
    assert severity(high=reached + 1e-9) is None


def test_prompts_of_categories_that_are_off_are_not_asked_for() -> None:
    off = category("off", prompts=["nobody asks"], mode="off")
    asked = policy_of(category(exceptions=["pink"]), off, templates=["{}", "a {}"])
    assert texts_of(asked) == (
        "a red",
        "red",
        "a blue",
        "blue",
        "a pink",
        "pink",
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


def test_frames_that_must_agree_are_counted_as_frames_and_not_as_views() -> None:
    policy = compiled(category(frames={"at_least": 2}), category("worst"))
    rows = images("red", "red", "blue", "white", "blue")

    def margins(frames: Sequence[int] | None) -> list[tuple[int, float]]:
        return [(one.row, one.margin) for one in decide(policy, rows, None, frames).categories]

    own = score(policy, rows).margins[:, 0].tolist()
    assert own[0] > own[3] > own[2]
    assert margins((0, 0, 1, 1, 2)) == [(3, own[3]), (0, own[0])]
    assert margins((0, 1, 2, 2, 3)) == [(1, own[1]), (0, own[0])]
    assert margins(None) == [(1, own[1]), (0, own[0])]


def test_an_image_with_fewer_frames_than_must_agree_takes_its_lowest() -> None:
    policy = compiled(category(frames={"at_least": 3}))
    [found] = decide(policy, images("red", "blue"), None, (0, 1)).categories
    assert found.row == 1
    [still] = decide(policy, images("blue", "red"), None, (0, 0)).categories
    assert still.row == 1


def test_margins_of_images_are_those_that_they_are_decided_by() -> None:
    policy = compiled(category(frames={"at_least": 2}), category("worst"))
    embeddings = [
        embedding(images("red"), (0,)),
        embedding(images("blue", "red", "white"), (0, 0, 5)),
        embedding(images("red", "white", "blue", "red"), (0, 1, 2, 2)),
    ]
    expected = [
        [one.margin for one in decide(policy, e.rows, None, e.facts.rows).categories]
        for e in embeddings
    ]
    assert image_margins(policy, embeddings).tolist() == expected
    assert image_margins(policy, []).shape == (0, 2)


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


def test_a_head_fitted_on_other_embeddings_is_refused_with_what_to_do() -> None:
    other = replace(head(), space="sha256:another", file="heads/red.safetensors")
    policy = with_head(policy_of(category()), "colour.red", other, alone=True)
    with pytest.raises(
        Misconfigured,
        match=r"heads/red\.safetensors of `colour.red` was fitted on.*"
        r"fit it again with `imagewarden policy fit-head`",
    ):
        compiled_of(policy, ENCODER)


def test_a_head_of_another_dimension_is_refused() -> None:
    short = replace(head(), vector=(1.0, 2.0))
    policy = with_head(policy_of(category()), "colour.red", short, alone=True)
    with pytest.raises(Misconfigured, match="has 2 dimensions, while 'fake' has 32"):
        compiled_of(policy, ENCODER)
