"""Why a policy decides on an image as it does, and what would have had to be different; pure.

What a single text did is found by deciding again without it, and not by taking shares of a margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from worker.authoring.platt import log_odds
from worker.authoring.variations import (
    Side,
    TextEmbeddings,
    Variation,
    compile_variations,
    without_each,
)
from worker.compiled import CompiledPolicy, Float64s, Parts
from worker.lists import Listed
from worker.policy import Calibration, Category, Decision, Policy, Prompt, Thresholds
from worker.score import CategoryScore, decide, logits, terms
from worker.types import Embedding, ModelInfo


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text, how loudly it spoke (its logit: scale times cosine), and what the category would say
    without it; None where no category would be left."""

    side: Side
    text: str
    weight: float
    logit: float
    without: Outcome | None


@dataclass(frozen=True, slots=True)
class Outcome:
    margin: float
    probability: float
    action: Decision


@dataclass(frozen=True, slots=True)
class Needed:
    """What another action takes: a probability on that side of ``threshold``, which is a change of
    at least ``by``; ``margin`` is where the calibration crosses it, None where it never does."""

    action: Decision
    side: Literal["from", "below"]
    threshold: float
    by: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class HeadSaid:
    file: str
    weight: float
    logit: float


@dataclass(frozen=True, slots=True)
class ExceptionSaid:
    """``taken_off`` is what the exception took off the margin."""

    texts: tuple[str, ...]
    weight: float
    taken_off: float


@dataclass(frozen=True, slots=True)
class CategoryExplained:
    """``thresholds`` are those in force for the tenant. ``held_back`` is the `block` that is not,
    as the category is uncalibrated. ``frame`` is the one that decided, counted from 0. ``spoken``
    is loudest first within each side; of exceptions it holds every text."""

    id: str
    mode: str
    action: Decision
    probability: float
    margin: float
    calibrated: bool
    severity: str | None
    thresholds: Thresholds
    held_back: float | None
    frame: int
    head: HeadSaid | None
    exceptions: tuple[ExceptionSaid, ...]
    spoken: tuple[Spoken, ...]
    needed: tuple[Needed, ...]

    @property
    def decisive(self) -> tuple[Spoken, ...]:
        """The texts without any one of which the action would be another."""
        return tuple(
            one for one in self.spoken if one.without and one.without.action != self.action
        )


@dataclass(frozen=True, slots=True)
class Explained:
    """What the policy says of an image. ``listed`` is the list of hashes that it is on: then its
    action is the decision, and the categories are what the model would have said. Categories are
    in the order of the file; those that are off are not among them."""

    decision: Decision
    decided_by: str | None
    listed: Listed | None
    categories: tuple[CategoryExplained, ...]


def explain(
    compiled: CompiledPolicy,
    info: ModelInfo,
    texts: TextEmbeddings,
    embedding: Embedding,
    tenant: str | None,
) -> Explained:
    """``texts`` has what ``compiled`` was compiled from. Raises ``ValueError`` as ``decide``."""
    frames = embedding.facts.rows
    decided = decide(compiled, embedding.rows, tenant, frames)
    scores = {one.id: one for one in (*decided.categories, *decided.shadow)}
    columns = logits(compiled, embedding.rows)
    dampening = terms(compiled, columns).dampening
    column_of = {text: column for column, text in enumerate(compiled.texts)}
    in_force = compiled.thresholds.get(tenant, compiled.thresholds[None])
    explained = []
    for category, parts, thresholds in zip(
        compiled.categories, compiled.parts, in_force, strict=True
    ):
        score = scores[category.id]
        heard = {text: float(columns[score.row, column]) for text, column in column_of.items()}
        outcomes = _without(
            compiled.policy, category, thresholds, score.calibrated, info, texts, embedding
        )
        explained.append(
            CategoryExplained(
                id=category.id,
                mode=category.mode,
                action=score.action,
                probability=score.probability,
                margin=score.margin,
                calibrated=score.calibrated,
                severity=score.severity,
                thresholds=thresholds,
                held_back=_held_back(compiled.policy, category, tenant, thresholds),
                frame=frames[score.row],
                head=_head(category, columns[score.row], parts),
                exceptions=tuple(
                    ExceptionSaid(
                        tuple(prompt.text for prompt in exception.prompts),
                        exception.weight,
                        float(dampening[score.row, place]),
                    )
                    for exception, place in zip(category.exceptions, parts.exceptions, strict=True)
                ),
                spoken=_spoken(category, heard, outcomes),
                needed=_needed(score, thresholds, category.calibration),
            )
        )
    listed = compiled.lists.match(embedding.facts.perceptual_hash, embedding.facts.frames)
    if listed is not None:
        return Explained(listed.action, listed.id, listed, tuple(explained))
    return Explained(decided.decision, decided.decided_by, None, tuple(explained))


def margin_at(calibration: Calibration | None, probability: float) -> float | None:
    """The lowest margin whose probability is at least that; None where every margin's is, or
    none's."""
    if not 0 < probability < 1:
        return None
    if calibration is None:
        return log_odds(probability)
    if calibration.method != "isotonic":
        return (log_odds(probability) - calibration.bias) / calibration.scale
    margins, probabilities = zip(*calibration.points, strict=True)
    place = int(np.searchsorted(probabilities, probability))
    if place in (0, len(margins)):
        return None
    low, high = probabilities[place - 1], probabilities[place]
    share = (probability - low) / (high - low)
    return float(margins[place - 1] + share * (margins[place] - margins[place - 1]))


def _without(
    policy: Policy,
    category: Category,
    thresholds: Thresholds,
    calibrated: bool,
    info: ModelInfo,
    texts: TextEmbeddings,
    embedding: Embedding,
) -> Mapping[tuple[Side, str], Outcome]:
    variations: list[Variation] = list(without_each(category))
    if not variations:
        return {}
    compiled = compile_variations(
        policy, [one.category for one in variations], info, texts, thresholds, calibrated
    )
    scores = decide(compiled, embedding.rows, None, embedding.facts.rows).categories
    return {
        (one.side, one.text): Outcome(score.margin, score.probability, score.action)
        for one, score in zip(variations, scores, strict=True)
    }


def _spoken(
    category: Category,
    heard: Mapping[str, float],
    outcomes: Mapping[tuple[Side, str], Outcome],
) -> tuple[Spoken, ...]:
    def of(side: Side, prompts: tuple[Prompt, ...]) -> list[Spoken]:
        # as `logmeanexp` counts a weight
        loudest = sorted(prompts, key=lambda p: -heard[p.text] - math.log(p.weight))
        return [
            Spoken(side, p.text, p.weight, heard[p.text], outcomes.get((side, p.text)))
            for p in loudest
        ]

    exceptions = (one for each in category.exceptions for one in of("exception", each.prompts))
    return (*of("prompt", category.prompts), *of("contrast", category.contrast), *exceptions)


def _needed(
    score: CategoryScore, thresholds: Thresholds, written: Calibration | None
) -> tuple[Needed, ...]:
    """In order of severity: first what would have been milder."""
    review, block = thresholds.review, thresholds.block
    ways: list[tuple[Decision, Literal["from", "below"], float | None]] = []
    if score.action is not Decision.ALLOW:
        ways.append((Decision.ALLOW, "below", block if review is None else review))
    if score.action is Decision.BLOCK and review is not None and review != block:
        ways.append((Decision.REVIEW, "below", block))
    if score.action is Decision.ALLOW and review != block:
        ways.append((Decision.REVIEW, "from", review))
    if score.action is not Decision.BLOCK:
        ways.append((Decision.BLOCK, "from", block))
    calibration = written if score.calibrated else None
    return tuple(
        Needed(
            action,
            side,
            threshold,
            threshold - score.probability,
            margin_at(calibration, threshold),
        )
        for action, side, threshold in ways
        if threshold is not None
    )


def _held_back(
    policy: Policy, category: Category, tenant: str | None, in_force: Thresholds
) -> float | None:
    written = next(
        (o.thresholds for o in policy.overrides if (o.tenant, o.category) == (tenant, category.id)),
        category.thresholds,
    )
    return written.block if in_force.block is None else None


def _head(category: Category, columns: Float64s, parts: Parts) -> HeadSaid | None:
    if category.head is None or parts.head is None:
        return None
    return HeadSaid(category.head.file, category.head.weight, float(columns[parts.head]))
