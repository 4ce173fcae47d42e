"""Fits a category's head to labelled images, and calibrates what it comes to, with its prompts.

The calibration is fitted, and all that is said of it is measured, on margins by heads that had not
seen the image: of images that it knows, a head is surer than it will ever be again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.authoring.calibrate import (
    Options,
    Unseen,
    calibrate,
    check_embeddings,
    digest_of_data,
)
from worker.authoring.examples import Example, Floats, Labels, known
from worker.authoring.folds import Folds, folds_of, near_duplicates
from worker.authoring.head_file import Provenance, head_bytes
from worker.authoring.heads import (
    Learned,
    Logit,
    check_counts,
    learn,
    unseen_folds,
    without_sources,
)
from worker.authoring.measures import auroc
from worker.authoring.results import Calibrated, Fit, Interval
from worker.compile import compile_policy
from worker.errors import Misconfigured
from worker.policy import Policy
from worker.score import image_margins
from worker.types import ModelInfo

TextEmbeddings = Mapping[str, NDArray[np.float32]]

_OTHER_WEIGHTS: Final = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A head, and the examples that say something of its category: all vectors are as long.

    ``folds`` are those it was learned by, with -1 for images of the split ``test``, which no head
    has seen. ``without_sources`` has the heads that never saw one of the sources of images that
    show the category. ``content`` is that of its file, ``facts`` what it was made of.
    """

    examples: Sequence[Example]
    labels: Labels
    learned: Learned
    folds: Folds
    without_sources: Mapping[str, Logit]
    content: bytes
    facts: Provenance


@dataclass(frozen=True, slots=True, eq=False)
class Proved:
    """``calibrated`` has the fit of the category alone, and ``others``, by the weight of the head,
    what it would be with another; 0 is the prompts alone. ``unseen_sources``: how well the images
    of a source are told from those that do not show it by a head that never saw the source (AUROC).
    """

    calibrated: Calibrated
    others: Mapping[float, Fit]
    unseen_sources: Mapping[str, float]

    @property
    def fit(self) -> Fit:
        return self.calibrated.fits[0]


def teach(examples: Sequence[Example], category: str, info: ModelInfo, today: date) -> Taught:
    """Learn a head for a category, by its id. Raises ``Misconfigured`` where the examples cannot
    teach one."""
    check_embeddings(examples, info)
    places, labels, weights = known(examples, category)
    said = [examples[place] for place in places]
    kept = np.array([example.split != "test" for example in said], dtype=np.bool_)
    lesson = [example for example, stays in zip(said, kept, strict=True) if stays]
    check_counts(labels[kept])
    embeddings = [example.embedding for example in lesson]
    duplicates = near_duplicates(embeddings)
    try:
        folds = unseen_folds(lesson, labels[kept], duplicates)
    except ValueError as error:
        raise Misconfigured(f"no head can be learned for {category!r}: {error}") from error
    learned = learn(embeddings, labels[kept], weights[kept], folds.fold, duplicates)
    everywhere = np.full(len(said), -1)
    everywhere[kept] = folds.fold
    sha256s = [embedding.key.sha256 for embedding in embeddings]
    shown = int(labels[kept].sum())
    facts: Provenance = {
        "category": category,
        "model": info.name,
        "space": info.space,
        "data": digest_of_data(examples),
        "positives": shown,
        "negatives": len(lesson) - shown,
        "penalty": f"L2, C = {learned.strength:.3g}",
        "folds": len(learned.without_fold),
        "date": today.isoformat(),
        "scikit-learn": version("scikit-learn"),
    }
    return Taught(
        examples=said,
        labels=labels,
        learned=learned,
        folds=replace(folds, fold=everywhere),
        without_sources=without_sources(lesson, labels[kept], weights[kept], learned.strength),
        content=head_bytes(learned.head, space=info.space, sha256s=sha256s, provenance=facts),
        facts=facts,
    )


def alone(policy: Policy, category: str) -> Policy:
    """The policy with one category, scored whatever its mode, and nothing that concerns others."""
    [one] = [each for each in policy.categories if each.id == category]
    return replace(
        policy,
        categories=(replace(one, mode="enforce"),),
        overrides=(),
        lists=(),
        max_block_rate=None,
        tests=(),
    )


def prove(
    taught: Taught, policy: Policy, info: ModelInfo, texts: TextEmbeddings, options: Options
) -> Proved:
    """Calibrate and measure a head as the one category of ``policy`` has it. ``texts`` has those of
    the policy."""
    [category] = policy.categories
    assert category.head is not None
    weight = category.head.weight
    fold = taught.folds.fold
    judged_by = taught.folds
    if (fold < 0).any():
        duplicates = near_duplicates([example.embedding for example in taught.examples])
        judged_by = folds_of(taught.examples, taught.labels, duplicates)

    def margins(heads: Sequence[Logit], weight: float) -> Floats:
        return _margins(policy, info, texts, taught.examples, heads, weight)

    def calibrated(weight: float) -> Calibrated:
        """By the heads that had not seen the image: for those of a fold, the one without it."""
        by_head = margins([*taught.learned.without_fold, taught.learned.head], weight)
        unseen = by_head[np.arange(len(fold)), fold]  # -1 is the last: the head itself
        return calibrate(
            compile_policy(policy, info, texts),
            info,
            taught.examples,
            options,
            unseen={category.id: Unseen(unseen, judged_by)},
        )

    found = calibrated(weight)
    fit = found.fits[0]
    others = [other for other in _OTHER_WEIGHTS if category.prompts and other != weight]
    sources = np.array([example.source or "" for example in taught.examples])
    unseen_sources = {}
    for source, head in taught.without_sources.items():
        shown = margins([head], weight)[taught.labels & (sources == source), 0]
        scores = np.concatenate([shown, fit.margins[~fit.labels]])
        unseen_sources[source] = auroc(scores, np.arange(len(scores)) < len(shown))
    return Proved(found, {other: calibrated(other).fits[0] for other in others}, unseen_sources)


def _margins(
    policy: Policy,
    info: ModelInfo,
    texts: TextEmbeddings,
    examples: Sequence[Example],
    heads: Sequence[Logit],
    weight: float,
) -> Floats:
    """[examples, heads]: what the category's margins would be with each of these heads."""
    [category] = policy.categories
    assert category.head is not None
    variations = tuple(
        replace(
            category,
            id=str(place),
            head=replace(
                category.head,
                vector=tuple(head.vector.tolist()),
                bias=head.bias,
                space=info.space,
                weight=weight,
            )
            if weight
            else None,
        )
        for place, head in enumerate(heads)
    )
    compiled = compile_policy(replace(policy, categories=variations), info, texts)
    return image_margins(compiled, [example.embedding for example in examples])


def provenance(taught: Taught, proved: Proved) -> Provenance:
    """What the file was made of, and how good it is: on margins by heads that had not seen the
    image, each figure with its 95 % interval."""
    fit = proved.fit
    figures: dict[str, object] = {
        "held_out": fit.warnings[0] if fit.warnings else "whole sources",
        "auroc": _rounded(fit.auroc),
        "ece": _rounded(fit.ece),
    }
    if others := {f"{weight:g}": _rounded(of.auroc) for weight, of in proved.others.items()}:
        figures["auroc_by_weight_of_the_head"] = others
    if proved.unseen_sources:
        figures["auroc_on_sources_never_seen"] = {
            source: round(value, 4) for source, value in proved.unseen_sources.items()
        }
    return {**taught.facts, **figures}


def _rounded(of: Interval | None) -> list[float] | None:
    return of and [round(value, 4) for value in of]
