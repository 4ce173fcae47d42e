"""What people said of verdicts, and the embeddings that were kept, as examples to fit on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from worker.authoring.embed_examples import Embedded
from worker.authoring.examples import Example
from worker.errors import Misconfigured
from worker.past.feedback import Judged
from worker.policy import Policy
from worker.types import Embedding


def answers_to(policy: Policy, judged: Iterable[Judged]) -> list[Judged]:
    """Of what was said, that which is about the policy's own verdicts and its categories. Raises
    ``Misconfigured`` where it is nothing."""
    ids = {category.id for category in policy.categories}
    others = list(judged)
    found = [one for one in others if one.policy == policy.id and one.category in ids]
    if not found and others:
        about = ", ".join(sorted({f"{one.category} of {one.policy}" for one in others}))
        raise Misconfigured(
            f"no feedback answers a verdict by a category of the policy {policy.id!r}; there is "
            f"some on {about}"
        )
    if not found:
        raise Misconfigured("there is no feedback that answers a verdict; look further back")
    return found


def examples_of_judged(
    judged: Sequence[Judged], embeddings: Mapping[str, Embedding], policy: Policy
) -> Embedded:
    """An example for each image and category that somebody looked at, by what was said of it,
    weighing as many images as it stands for. ``embeddings`` are by sha256. Raises ``Misconfigured``
    where none is left."""
    examples, left_out = [], []
    for one in judged:
        if (embedding := embeddings.get(one.sha256)) is None:
            left_out.append((one.item_id, "its embedding is not on the topic, for this model"))
            continue
        examples.append(
            Example(
                name=one.item_id,
                label=one.category if one.shows else f"no {one.category}",
                embedding=embedding,
                shows={one.category: one.shows},
                otherwise=None,
                weight=one.weight,
            )
        )
    if not examples:
        raise Misconfigured(
            f"of {len(judged)} images that people looked at, none has an embedding for this model "
            "on the topic any more; keep them longer, or calibrate with --labels"
        )
    return Embedded(examples, left_out, tuple(_one_sided(judged, policy)))


def _one_sided(judged: Sequence[Judged], policy: Policy) -> Iterable[str]:
    for category in policy.categories:
        actions = {one.action for one in judged if one.category == category.id}
        if actions and "allow" not in actions:
            yield (
                f"{category.id}: nobody looked at images that it let through, so its probabilities "
                "say nothing of those; put a sample of them before people, with `sampled`"
            )
