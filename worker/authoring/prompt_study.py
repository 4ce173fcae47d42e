"""What each prompt and contrast of a category adds or costs on labelled images, which images it
mistakes, and what other phrasings would change; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from worker.authoring.examples import Example, Floats, Labels, known
from worker.authoring.paired_bootstrap import (
    interval,
    recall_at,
    resampled_weights,
    simultaneous,
    weighted_auroc,
)
from worker.authoring.results import Interval
from worker.authoring.variations import (
    Side,
    TextEmbeddings,
    Variation,
    compile_variations,
    each_alone,
    with_text,
    without_each,
)
from worker.compiled import CompiledPolicy
from worker.policy import Category, Policy, Thresholds
from worker.score import decide, image_margins, probabilities
from worker.types import Embedding, ModelInfo

FEWEST: Final = 10  # of each kind; from fewer no interval says anything
DEFAULT_FPR: Final = 0.05
_AT_ONCE: Final = 64  # variations compiled together: bounds what is held for each row

Verdict = Literal["helps", "hurts", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A phrasing that might be added."""

    side: Literal["prompt", "contrast"]
    text: str


@dataclass(frozen=True, slots=True)
class TextEffect:
    """What having a text adds to the AUROC, and to the recall at the study's false positive rate:
    the category with it against the category without it, as simultaneous 95 % intervals. ``alone``
    is the AUROC with it as the only one on its side. None: there is no such category."""

    side: Side
    text: str
    auroc: Interval | None
    recall: Interval | None
    alone: Interval | None = None

    @property
    def verdict(self) -> Verdict | None:
        if self.auroc is None:
            return None
        if self.auroc.low > 0:
            return "helps"
        return "hurts" if self.auroc.high < 0 else "no difference shown"


@dataclass(frozen=True, slots=True)
class LookAlike:
    """Images of one label that do not show the category and score highest: how many reach the
    threshold, the prompt that is loudest on most of them (None: there is only a head), and names,
    worst first."""

    label: str
    images: int
    alarms: int
    loudest: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CategoryStudy:
    """``refused`` says why there is nothing else. ``threshold`` is the category's lowest;
    ``fpr`` the share of negatives that reach it, and ``at_fpr`` the rate at which recalls are
    compared: that one or, where it is none or most, ``DEFAULT_FPR``."""

    category: str
    positives: int
    negatives: int
    groups: int = 0
    refused: str | None = None
    calibrated: bool = False
    auroc: Interval | None = None
    recall: Interval | None = None
    threshold: float = 0.0
    fpr: float = 0.0
    at_fpr: float = DEFAULT_FPR
    texts: tuple[TextEffect, ...] = ()
    candidates: tuple[TextEffect, ...] = ()
    look_alikes: tuple[LookAlike, ...] = ()


def study(
    policy: Policy,
    category: Category,
    calibrated: bool,
    info: ModelInfo,
    texts: TextEmbeddings,
    examples: Sequence[Example],
    groups: NDArray[np.intp],
    candidates: Sequence[Candidate] = (),
) -> CategoryStudy:
    """``texts`` has the category's and the candidates', in the policy's templates; ``groups`` has
    a number for each example, equal for those that resemble each other."""
    places, labels, weights = known(examples, category.id)
    positives = int(labels.sum())
    counts = (category.id, positives, len(labels) - positives)
    if min(counts[1:]) < FEWEST:
        why = f"needs at least {FEWEST} images that show it and {FEWEST} that do not"
        return CategoryStudy(*counts, refused=why)
    images = [examples[place] for place in places]
    embeddings = [image.embedding for image in images]

    def scored(variations: Sequence[Category]) -> Floats:
        return _scored(policy, variations, info, texts, embeddings)

    itself = compile_variations(
        policy, [category], info, texts, _lowest(category), calibrated=calibrated
    )
    margins = image_margins(itself, embeddings)
    reached = probabilities(itself, margins)[:, 0]
    threshold = _lowest(category).review or 0.0
    fpr = float(np.average(reached[~labels] >= threshold, weights=weights[~labels]))
    at_fpr = fpr if 0 < fpr < 0.5 else DEFAULT_FPR
    left_out = list(without_each(category))
    alone = list(each_alone(category))
    added = [with_text(category, one.side, one.text) for one in candidates]
    changed = scored([one.category for one in (*left_out, *alone, *added)])
    aurocs, recalls = _resampled(
        np.column_stack([margins, changed]), labels, weights, groups[places], at_fpr
    )
    first, second = 1 + len(left_out), 1 + len(left_out) + len(alone)
    alones = {
        (one.side, one.text): interval(aurocs[:, first + place]) for place, one in enumerate(alone)
    }
    with_it = _effects(
        left_out, aurocs[:, 0:1] - aurocs[:, 1:first], recalls[:, 0:1] - recalls[:, 1:first]
    )
    return CategoryStudy(
        *counts,
        groups=len(np.unique(groups[places])),
        calibrated=calibrated,
        auroc=interval(aurocs[:, 0]),
        recall=interval(recalls[:, 0]),
        threshold=threshold,
        fpr=fpr,
        at_fpr=at_fpr,
        texts=_all_texts(category, with_it, alones),
        candidates=_effects(
            added, aurocs[:, second:] - aurocs[:, 0:1], recalls[:, second:] - recalls[:, 0:1]
        ),
        look_alikes=_look_alikes(itself, images, labels, reached, threshold),
    )


def _lowest(category: Category) -> Thresholds:
    """The lowest threshold of a category, as its only one; one that is not solved yet is a half."""
    review, block = category.thresholds.review, category.thresholds.block
    lowest = block if review is None else review
    return Thresholds(0.5 if lowest is None else lowest, None)


def _scored(
    policy: Policy,
    variations: Sequence[Category],
    info: ModelInfo,
    texts: TextEmbeddings,
    embeddings: Sequence[Embedding],
) -> Floats:
    """Margins, [images, variations]."""
    parts = [np.empty((len(embeddings), 0))]
    for start in range(0, len(variations), _AT_ONCE):
        compiled = compile_variations(
            policy,
            variations[start : start + _AT_ONCE],
            info,
            texts,
            Thresholds(0.5, None),
            calibrated=False,
        )
        parts.append(image_margins(compiled, embeddings))
    return np.concatenate(parts, axis=1)


def _resampled(
    margins: Floats, labels: Labels, weights: Floats, groups: NDArray[np.intp], fpr: float
) -> tuple[Floats, Floats]:
    """AUROC, and recall at ``fpr``, of each column of margins: [1 + resamples, columns]; the first
    row is that of the sample."""
    aurocs, recalls = [], []
    for drawn in resampled_weights(labels, weights, groups):
        columns = margins.T
        aurocs.append(np.column_stack([weighted_auroc(one, labels, drawn) for one in columns]))
        recalls.append(np.column_stack([recall_at(one, labels, drawn, fpr) for one in columns]))
    return np.concatenate(aurocs), np.concatenate(recalls)


def _effects(
    variations: Sequence[Variation], aurocs: Floats, recalls: Floats
) -> tuple[TextEffect, ...]:
    if not variations:
        return ()
    pairs = zip(variations, simultaneous(aurocs), simultaneous(recalls), strict=True)
    return tuple(TextEffect(one.side, one.text, auroc, recall) for one, auroc, recall in pairs)


def _all_texts(
    category: Category,
    effects: Sequence[TextEffect],
    alones: dict[tuple[Side, str], Interval],
) -> tuple[TextEffect, ...]:
    """Also those that nothing could be said of; within each side, what adds most first."""
    found = {(one.side, one.text): one for one in effects}
    sides: tuple[tuple[Side, Sequence[str]], ...] = (
        ("prompt", [one.text for one in category.prompts]),
        ("contrast", [one.text for one in category.contrast]),
        ("exception", [one.text for each in category.exceptions for one in each.prompts]),
    )
    texts = [
        replace(
            found.get((side, text), TextEffect(side, text, None, None)),
            alone=alones.get((side, text)),
        )
        for side, of_side in sides
        for text in of_side
    ]
    order = [side for side, _ in sides]
    return tuple(
        sorted(texts, key=lambda t: (order.index(t.side), -t.auroc.value if t.auroc else 0.0))
    )


def _look_alikes(
    itself: CompiledPolicy,
    images: Sequence[Example],
    labels: Labels,
    reached: Floats,
    threshold: float,
) -> tuple[LookAlike, ...]:
    """By label, most alarms first; where nothing reaches the threshold, the ten nearest to it."""
    worst_first = [int(place) for place in np.argsort(-reached, kind="stable") if not labels[place]]
    alarms = [place for place in worst_first if reached[place] >= threshold]
    by_label: dict[str, list[int]] = {}
    for place in alarms or worst_first[:10]:
        by_label.setdefault(images[place].label, []).append(place)
    of_label = Counter(images[place].label for place in worst_first)
    found = []
    for label, places in by_label.items():
        loudest: Counter[str] = Counter()
        for place in places:
            embedding = images[place].embedding
            decided = decide(itself, embedding.rows, None, embedding.facts.rows)
            if (text := decided.categories[0].loudest_for) is not None:
                loudest[text] += 1
        most = loudest.most_common(1)
        names = tuple(images[place].name for place in places[:3])
        found.append(
            LookAlike(
                label,
                of_label[label],
                len(places) if alarms else 0,
                most[0][0] if most else None,
                names,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.alarms))
