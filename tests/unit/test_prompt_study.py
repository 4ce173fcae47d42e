"""A text is said to help or hurt only where the images show it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from tests.fakes import FakeEncoder
from tests.policy_factory import category, policy_of, with_head
from worker.authoring.examples import Example
from worker.authoring.paired_bootstrap import (
    interval,
    recall_at,
    resampled_weights,
    simultaneous,
    weighted_auroc,
)
from worker.authoring.prompt_study import Candidate, CategoryStudy, TextEffect, study
from worker.compile import texts_of
from worker.policy import Head, Policy
from worker.types import Embedding, EmbeddingKey, FramePlan, ImageFacts

ENCODER = FakeEncoder()


def example(place: int, colour: Sequence[float], label: str, shows: bool | None) -> Example:
    pixels = np.array(colour, dtype=np.uint8)[None, None, None].repeat(8, 1).repeat(8, 2)
    facts = ImageFacts("0" * 64, None, "image/png", 8, 8, 1, 1, (0,))
    key = EmbeddingKey(f"{place:064x}", ENCODER.info.digest, FramePlan().digest)
    rows = ENCODER.encode_images(pixels).astype(np.float16)
    says = {} if shows is None else {"colour.red": shows}
    return Example(f"{label}/{place}.png", label, Embedding(key, rows, facts), says, None)


def coloured(seed: int, each: int = 60) -> list[Example]:
    """Reddish images that show it; bluish and greenish ones that do not."""
    random = np.random.default_rng(seed)
    centres = {"red": (180, 90, 90), "blue": (110, 100, 150), "green": (110, 150, 100)}
    return [
        example(place, np.clip(random.normal(centre, 40), 0, 255).tolist(), label, label == "red")
        for label, centre in centres.items()
        for place in range(each)
    ]


EXAMPLES = coloured(1)


def studied(
    policy: Policy,
    examples: Sequence[Example] = EXAMPLES,
    candidates: Sequence[Candidate] = (),
    groups: Sequence[int] | None = None,
) -> CategoryStudy:
    texts = [*texts_of(policy), *(candidate.text for candidate in candidates)]
    embeddings = dict(zip(texts, ENCODER.encode_texts(texts), strict=True))
    return study(
        policy,
        policy.categories[0],
        False,
        ENCODER.info,
        embeddings,
        examples,
        np.arange(len(examples)) if groups is None else np.array(groups),
        candidates,
    )


def effect(of: Sequence[TextEffect], text: str) -> TextEffect:
    [found] = [one for one in of if one.text == text]
    return found


# ---------------------------------------------------------------- the study


def test_text_that_the_category_lives_by_helps() -> None:
    policy = policy_of(category(prompts=["red", "white"], contrast=["blue", "green"]))
    found = studied(policy)
    assert effect(found.texts, "red").verdict == "helps"
    assert effect(found.texts, "green").verdict == "helps"


def test_prompt_for_the_wrong_thing_hurts() -> None:
    policy = policy_of(category(prompts=["red", "green"], contrast=["blue"]))
    found = effect(studied(policy).texts, "green")
    assert found.verdict == "hurts"
    assert found.auroc is not None and found.auroc.high < 0


def test_text_that_changes_nothing_shows_no_difference() -> None:
    policy = policy_of(
        category(prompts=["red", "red colour"], contrast=["blue", "green"])
    )  # to this model both are one
    found = effect(studied(policy).texts, "red colour")
    assert found.verdict == "no difference shown"
    assert found.auroc == (0.0, 0.0, 0.0)


def test_only_text_of_its_side_has_no_verdict_but_a_figure_alone() -> None:
    found = studied(policy_of(category(prompts=["red"], contrast=["blue", "green"])))
    red = effect(found.texts, "red")
    assert (red.auroc, red.verdict) == (None, None)
    assert red.alone is not None and red.alone == found.auroc


def test_exception_is_studied_too() -> None:
    policy = policy_of(
        category(prompts=["red", "white"], contrast=["blue"], exceptions=["green", "black"])
    )
    found = studied(policy)
    assert {one.text for one in found.texts if one.side == "exception"} == {"green", "black"}
    assert effect(found.texts, "green").auroc is not None


def test_category_with_a_head_alone_has_figures_and_no_texts() -> None:
    texts = ENCODER.encode_texts(["red"])[0]
    head = Head("h", "sha256:0", ENCODER.info.space, tuple(texts.tolist()), bias=0.0)
    found = studied(with_head(policy_of(category()), "colour.red", head, alone=True))
    assert found.texts == ()
    assert found.auroc is not None and found.auroc.value > 0.9
    assert found.look_alikes and {one.loudest for one in found.look_alikes} == {None}


def test_candidates_are_each_added_alone() -> None:
    policy = policy_of(category(prompts=["red"], contrast=["blue"]))
    tried = [Candidate("contrast", "green"), Candidate("prompt", "green leaves")]
    together = studied(policy, candidates=tried)
    assert effect(together.candidates, "green leaves").verdict == "hurts"
    [by_itself] = studied(policy, candidates=tried[:1]).candidates
    first = effect(together.candidates, "green")
    assert by_itself.auroc is not None and first.auroc is not None
    assert by_itself.auroc.value == first.auroc.value


def test_more_candidates_make_every_interval_wider() -> None:
    policy = policy_of(category(prompts=["red"], contrast=["blue"]))
    tried = [Candidate("contrast", "green")]
    many = [*tried, *(Candidate("prompt", f"nonsense {number}") for number in range(40))]
    [alone] = studied(policy, candidates=tried).candidates
    among = effect(studied(policy, candidates=many).candidates, "green")
    assert alone.auroc is not None and among.auroc is not None
    assert among.auroc.low < alone.auroc.low and alone.auroc.high < among.auroc.high


def test_nonsense_is_seldom_taken_for_a_gain() -> None:
    # whatever adds noise alone makes a good category worse or does nothing
    policy = policy_of(category(prompts=["red"], contrast=["blue", "green"]))
    tried = [Candidate("contrast", f"nonsense {number}") for number in range(30)]
    helps = [
        one
        for seed in range(5)
        for one in studied(policy, coloured(seed, 20), tried).candidates
        if one.verdict == "helps"
    ]
    assert len(helps) <= 8


def test_look_alikes_are_told_by_label_with_the_prompt_that_fires() -> None:
    policy = policy_of(category(prompts=["red", "green leaves"], contrast=["blue"]))
    found = studied(policy)
    most = found.look_alikes[0]
    assert (most.label, most.loudest, most.images) == ("green", "green leaves", 60)
    assert most.alarms == max(one.alarms for one in found.look_alikes) > 0
    assert all(name.startswith("green/") for name in most.names)
    assert found.fpr == pytest.approx(sum(one.alarms for one in found.look_alikes) / 120)


def test_where_nothing_reaches_the_threshold_the_nearest_are_told() -> None:
    policy = policy_of(category(prompts=["red"], contrast=["blue"], review=1.0))
    found = studied(policy)
    assert found.fpr == 0
    assert found.look_alikes and all(one.alarms == 0 for one in found.look_alikes)


def test_image_of_which_nobody_said_anything_does_not_count() -> None:
    unsaid = [example(1000 + n, (255, 0, 0), "unknown", None) for n in range(50)]
    policy = policy_of(category(prompts=["red", "black"], contrast=["blue"]))
    assert studied(policy, [*EXAMPLES, *unsaid]) == studied(policy)


@pytest.mark.parametrize("kept", ["red", "blue"])
def test_one_kind_of_images_is_refused_with_a_sentence(kept: str) -> None:
    found = studied(policy_of(category()), [one for one in EXAMPLES if one.label == kept])
    assert found.refused == "needs at least 10 images that show it and 10 that do not"
    assert found.auroc is None and found.texts == ()


def test_copies_of_images_do_not_make_a_figure_surer() -> None:
    policy = policy_of(category(prompts=["red", "black"], contrast=["blue"]))
    examples = coloured(3, 20)
    once = studied(policy, examples)
    copied = studied(policy, examples * 4, groups=[*range(len(examples))] * 4)
    assert once.auroc is not None and copied.auroc is not None
    assert copied.auroc == pytest.approx(once.auroc)
    assert copied.groups == once.groups == len(examples)


# ---------------------------------------------------------------- the bootstrap

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=4, max_size=30)


@settings(deadline=None)
@given(SCORES, st.data())
def test_auroc_is_scikit_learn_s(scores: list[float], data: st.DataObject) -> None:
    size = len(scores)
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    if labels.all() or not labels.any():
        labels[0] = not labels[0]
    weights = np.array(data.draw(st.lists(st.floats(0.5, 3), min_size=size, max_size=size)))
    [found] = weighted_auroc(np.array(scores), labels, weights[None])
    assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


@settings(deadline=None)
@given(SCORES, st.data(), st.floats(0, 1))
def test_recall_is_the_best_that_the_false_alarms_allow(
    scores: list[float], data: st.DataObject, fpr: float
) -> None:
    size = len(scores)
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    if labels.all() or not labels.any():
        labels[0] = not labels[0]
    alarms, shown, _ = roc_curve(labels, scores, drop_intermediate=False)
    [found] = recall_at(np.array(scores), labels, np.ones((1, size)), fpr)
    assert found == pytest.approx(shown[alarms <= fpr + 1e-9].max())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=40), st.data())
def test_groups_are_drawn_whole_and_both_kinds_are_always_there(
    groups: list[int], data: st.DataObject
) -> None:
    size = len(groups)
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    for drawn in resampled_weights(labels, np.ones(len(groups)), np.array(groups), 20):
        for group in set(groups):
            of_group = drawn[:, np.array(groups) == group]
            assert (of_group == of_group[:, :1]).all()
        for kind in (labels, ~labels):
            assert not kind.any() or (drawn[:, kind].sum(axis=1) > 0).all()


def test_first_of_the_resamples_is_the_sample_itself() -> None:
    weights = np.array([1.0, 2.0, 3.0])
    first = next(resampled_weights(np.array([True, False, True]), weights, np.arange(3)))
    assert (first == weights).all()


def test_simultaneous_intervals_hold_together_more_often_than_single_ones() -> None:
    random = np.random.default_rng(5)
    trials, ways = 60, 25
    single = together = 0
    for _ in range(trials):
        true_zero = random.normal(size=(200, ways))
        means = np.array(
            [true_zero.mean(axis=0)]
            + [true_zero[random.integers(0, 200, 200)].mean(axis=0) for _ in range(300)]
        )
        together += all(one.low <= 0 <= one.high for one in simultaneous(means))
        single += all(interval(means[:, [way]][:, 0]).low <= 0 for way in range(ways))
    assert together >= 0.85 * trials > single
