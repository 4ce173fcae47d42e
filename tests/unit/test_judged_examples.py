"""What people said of verdicts, as examples to calibrate on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policy_factory import category, policy_of
from worker.authoring.judged_examples import answers_to, examples_of_judged
from worker.errors import Misconfigured
from worker.past.feedback import Judged
from worker.policy import Policy
from worker.schema import Action
from worker.types import Embedding, EmbeddingKey, ImageFacts

POLICY = policy_of(category("cat"), category("dog"))


def judged(item: str, *, policy: str = "test", about: str = "cat", **said: object) -> Judged:
    words = {"action": "block", "shows": True, **said}
    return Judged(policy, about, item_id=item, sha256=sha256_of(item), **words)  # type: ignore[arg-type]


def sha256_of(item: str) -> str:
    return item.encode().hex().ljust(64, "0")


def kept(*items: str) -> dict[str, Embedding]:
    rows = np.eye(1, 4, dtype=np.float16)
    return {
        sha256: Embedding(
            EmbeddingKey(sha256, "model", "plan"),
            rows,
            ImageFacts(sha256, None, "image/jpeg", 1, 1, 1, 1, (0,)),
        )
        for sha256 in map(sha256_of, items)
    }


def test_an_example_says_what_the_person_said_and_of_nothing_else() -> None:
    said = [judged("a", shows=False, action="allow", weight=20.0), judged("b", about="dog")]
    first, second = examples_of_judged(said, kept("a", "b"), POLICY).examples
    assert (first.name, first.says("cat"), first.says("dog"), first.weight) == (
        "a",
        False,
        None,
        20.0,
    )
    assert (second.says("cat"), second.says("dog"), second.weight) == (None, True, 1.0)


def test_images_whose_embedding_is_gone_are_left_out_and_named() -> None:
    found = examples_of_judged([judged("a"), judged("b")], kept("b"), POLICY)
    assert [example.name for example in found.examples] == ["b"]
    assert [name for name, _ in found.left_out] == ["a"]


def test_with_no_embedding_at_all_there_is_nothing_to_fit() -> None:
    with pytest.raises(Misconfigured, match="of 1 images that people looked at, none"):
        examples_of_judged([judged("a")], kept(), POLICY)


@pytest.mark.parametrize(
    ("actions", "noted"), [(["block", "review"], ["cat"]), (["block", "allow"], [])]
)
def test_it_is_told_where_nobody_looked_at_what_was_let_through(
    actions: list[Action], noted: list[str]
) -> None:
    said = [judged(action, action=action) for action in actions]
    notes = examples_of_judged(said, kept(*actions), POLICY).notes
    assert [note.partition(":")[0] for note in notes] == noted


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([], "no feedback that answers a verdict"),
        ([judged("a", policy="other")], "there is some on cat of other"),
        ([judged("a", about="bird")], "there is some on bird of test"),
    ],
)
def test_feedback_on_other_policies_and_categories_is_no_help(
    said: list[Judged], told: str
) -> None:
    with pytest.raises(Misconfigured, match=told):
        answers_to(POLICY, said)


def test_feedback_on_the_policy_is_kept_apart_from_that_on_others() -> None:
    policy: Policy = POLICY
    ours = judged("a")
    assert answers_to(policy, [ours, judged("b", policy="other")]) == [ours]
