"""Categories that are one text apart, compiled side by side: what a text does is what changes when
it is not there.

Each variation is a category of its own in one compiled policy, so a text's cosine to an image is
computed once however many variations share it, and no image is embedded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worker.compile import compile_policy
from worker.compiled import CompiledPolicy
from worker.policy import Category, Dampener, Policy, Prompt, Thresholds, margin_digest
from worker.types import ModelInfo

Side = Literal["prompt", "contrast", "exception"]
TextEmbeddings = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Variation:
    """``category`` as it would be without ``text``, with it alone on its side, or with it added."""

    side: Side
    text: str
    category: Category


def without_each(category: Category) -> Iterator[Variation]:
    """Leaves out each prompt, contrast and exception, one at a time, as long as a category remains:
    not its last prompt, nor its last contrast."""
    if len(category.prompts) > 1:
        for prompt in category.prompts:
            rest = _others(category.prompts, prompt)
            yield Variation("prompt", prompt.text, replace(category, prompts=rest))
    if len(category.contrast) > 1 and (category.prompts or category.exceptions):
        for prompt in category.contrast:
            rest = _others(category.contrast, prompt)
            yield Variation("contrast", prompt.text, replace(category, contrast=rest))
    for place, dampener in enumerate(category.exceptions):
        for prompt in dampener.prompts:
            rest = _others(dampener.prompts, prompt)
            kept = (Dampener(rest, dampener.weight),) if rest else ()
            exceptions = (*category.exceptions[:place], *kept, *category.exceptions[place + 1 :])
            yield Variation("exception", prompt.text, replace(category, exceptions=exceptions))


def each_alone(category: Category) -> Iterator[Variation]:
    """Each prompt against all contrasts, and all prompts against each contrast; without a head."""
    bare = replace(category, head=None)
    for prompt in category.prompts:
        yield Variation("prompt", prompt.text, replace(bare, prompts=(prompt,)))
    if category.prompts:
        for prompt in category.contrast:
            yield Variation("contrast", prompt.text, replace(bare, contrast=(prompt,)))


def with_text(category: Category, side: Literal["prompt", "contrast"], text: str) -> Variation:
    """Adds a text of weight 1 that the category does not have."""
    added = Prompt(text)
    if side == "prompt":
        return Variation(side, text, replace(category, prompts=(*category.prompts, added)))
    return Variation(side, text, replace(category, contrast=(*category.contrast, added)))


def compile_variations(
    policy: Policy,
    categories: Sequence[Category],
    info: ModelInfo,
    texts: TextEmbeddings,
    thresholds: Thresholds,
    calibrated: bool,
) -> CompiledPolicy:
    """``categories`` as the enforced ones of a policy, by their places, all with ``thresholds``.

    A calibration is good for no other wording; here, where ``calibrated`` says that it was in
    force, it is kept for all of them, to tell what the wording alone does.
    """
    same = replace(policy, lists=(), overrides=(), tests=(), max_block_rate=None)
    return compile_policy(
        replace(
            same,
            categories=tuple(
                replace(
                    category,
                    id=str(place),
                    mode="enforce",
                    block_uncalibrated=True,
                    thresholds=thresholds,
                    calibration=replace(
                        category.calibration, fitted_for=margin_digest(same, category, info)
                    )
                    if calibrated and category.calibration
                    else None,
                )
                for place, category in enumerate(categories)
            ),
        ),
        info,
        texts,
    )


def _others(prompts: Sequence[Prompt], left_out: Prompt) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in prompts if prompt != left_out)
