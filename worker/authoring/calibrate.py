"""Fit a policy's calibrations to labelled images.

A calibration turns a category's margin into the probability that a moderator would say yes. It is
fitted on what the worker itself would see: the same float16 embeddings, and the margin that an
image is decided by. What is said of it is measured on images that the fit had not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np

from worker.authoring.examples import Example, Floats, Labels, known
from worker.authoring.fits import (
    FEWEST_FOR_ISOTONIC,
    at_prevalence,
    fit,
    probability,
    rounded,
)
from worker.authoring.folds import Folds, Groups, folds_of, near_duplicates
from worker.authoring.measures import log_loss, measured
from worker.authoring.results import Calibrated, Fit
from worker.authoring.thresholds import Scored, reports
from worker.compiled import CompiledPolicy
from worker.errors import Misconfigured
from worker.policy import Calibration, Category, Method, margin_digest
from worker.score import image_margins
from worker.types import ModelInfo, digest_of

FEWEST: Final = 10  # of each kind; two numbers cannot be told from fewer

Choice = Method | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Options:
    """``prevalence``, by category id, is the share of live traffic expected to be positive, above
    0 and below 1; without one, probabilities are at the data's own share. ``auto`` takes the method
    whose held-out probabilities have the least log loss."""

    method: Choice = "platt"
    prevalence: Mapping[str, float] = field(default_factory=dict)


class Unseen(NamedTuple):
    """For a category with something that was itself learnt from the examples: the margin of each
    example that says something of it, by what was learnt on the other folds."""

    margins: Floats
    folds: Folds


def calibrate(
    compiled: CompiledPolicy,
    info: ModelInfo,
    examples: Sequence[Example],
    options: Options = Options(),
    *,
    unseen: Mapping[str, Unseen] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Calibrated:
    """Fit every category of the policy that is not off; those that cannot be are ``refused``, and
    so are those that ``refused`` gives a reason for.

    Raises ``Misconfigured`` where an embedding is not finite or of another model.
    """
    check_embeddings(examples, info)
    embeddings = [example.embedding for example in examples]
    margins = image_margins(compiled, embeddings)
    duplicates = near_duplicates(embeddings)
    fits = []
    for index, category in enumerate(compiled.categories):
        places, labels, weights = known(examples, category.id)
        data = _Data(
            category=category,
            examples=[examples[place] for place in places],
            labels=labels,
            weights=weights,
            margins=margins[places, index],
            duplicates=duplicates[places],
            unseen=(unseen or {}).get(category.id),
            prevalence=options.prevalence.get(category.id),
            fitted_for=margin_digest(compiled.policy, category, info),
        )
        try:
            if why := (refused or {}).get(category.id):
                raise _Refused(why)
            fits.append(_fitted(data, places, options.method))
        except _Refused as reason:
            fits.append(Fit(category.id, places, labels, weights, data.margins, str(reason)))
    return Calibrated(compiled, examples, fits, digest_of_data(examples))


def check_embeddings(examples: Sequence[Example], info: ModelInfo) -> None:
    """Raises ``Misconfigured`` where an embedding is not finite or of another model."""
    for example in examples:
        if example.embedding.rows.shape[1] != info.dimension:
            raise Misconfigured(
                f"the embedding of {example.name} has {example.embedding.rows.shape[1]} numbers, "
                f"and those of {info.name} have {info.dimension}; it is of another model"
            )
        if not np.isfinite(example.embedding.rows).all():
            raise Misconfigured(
                f"the embedding of {example.name} is not finite; embed the image again"
            )


def digest_of_data(examples: Sequence[Example]) -> str:
    """Of what was said of which images, whatever their order and names."""
    return digest_of(
        sorted([e.embedding.key.sha256, e.label, e.split or "", f"{e.weight:g}"] for e in examples)
    )


class _Refused(Exception):
    """A category stays as it was; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """What there is to fit one category on; vectors are [images]."""

    category: Category
    examples: Sequence[Example]
    labels: Labels
    weights: Floats
    margins: Floats
    duplicates: Groups
    unseen: Unseen | None
    prevalence: float | None
    fitted_for: str

    def share(self, of: Labels) -> float:
        """Of the chosen images, how much is positive, by weight."""
        return float(self.weights[of & self.labels].sum() / self.weights[of].sum())

    def fit(self, method: Method, margins: Floats, of: Labels, live: float) -> Calibration | None:
        """Fitted on the chosen images, at the prevalence ``live``; None where margins are no
        higher for those that show it."""
        calibration = fit(method, margins[of], self.labels[of], self.weights[of], self.fitted_for)
        return calibration and at_prevalence(calibration, self.share(of), live)


def _fitted(data: _Data, places: Groups, choice: Choice) -> Fit:
    _check_counts(data.labels, "")
    margins, folds = data.unseen or Unseen(data.margins, _folds(data))
    if not (np.isfinite(data.margins).all() and np.isfinite(margins).all()):
        raise _Refused("some of its margins are not finite; look at its prompts and its head")
    tested = folds.fold >= 0
    taught = tested if tested.all() else ~tested  # every fold in its turn, or a split of its own
    _check_counts(data.labels[taught], " to fit on")
    _check_counts(data.labels[tested], " to test on")
    own = data.share(taught)
    live = own if data.prevalence is None else data.prevalence

    def held_out(method: Method, at: float) -> Floats:
        """[tested images]: probabilities by the other folds, at the prevalence ``at``."""
        found = np.full(len(margins), at)  # where the others tell nothing
        for number in range(int(folds.fold.max()) + 1):
            inside = folds.fold == number
            if calibration := data.fit(method, margins, ~inside, at):
                found[inside] = probability(calibration, margins[inside])
        return found[tested]

    labels, weights, groups = data.labels[tested], data.weights[tested], data.duplicates[tested]
    method = _best(
        _methods(choice, data.labels[taught]),
        lambda method: log_loss(held_out(method, own), labels, weights),
    )
    calibration = data.fit(method, margins, taught, live)
    if calibration is None:
        raise _Refused("its margins are no higher for images that show it; reword its prompts")
    measures = measured(margins[tested], held_out(method, own), labels, weights, groups)
    scored = Scored(held_out(method, live), labels, weights, groups, data.prevalence)
    return Fit(
        category=data.category.id,
        places=places[tested],
        labels=labels,
        weights=weights,
        margins=margins[tested],
        warnings=(folds.warning,) if folds.warning else (),
        calibration=rounded(calibration),
        prevalence=data.prevalence,
        folds=folds.fold[tested],
        held_out=scored.probabilities,
        auroc=measures.auroc,
        average_precision=measures.average_precision,
        ece=measures.ece,
        thresholds=reports(data.category, scored),
        fitted_on=(int(data.labels[taught].sum()), int((~data.labels[taught]).sum())),
        by_source=folds.by_source,
    )


def _folds(data: _Data) -> Folds:
    try:
        return folds_of(data.examples, data.labels, data.duplicates)
    except ValueError as error:
        raise _Refused(f"its images cannot be divided into folds: {error}") from None


def _check_counts(labels: Labels, what_for: str) -> None:
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if min(positives, negatives) < FEWEST:
        raise _Refused(
            f"{positives} images show it and {negatives} do not{what_for}; at least {FEWEST} of "
            f"each are needed"
        )


def _methods(choice: Choice, labels: Labels) -> Sequence[Method]:
    """Those that are asked for and that the data allow."""
    positives = int(labels.sum())
    enough = min(positives, len(labels) - positives) >= FEWEST_FOR_ISOTONIC
    if choice == "isotonic" and not enough:
        raise _Refused(
            f"{positives} images show it and {len(labels) - positives} do not; isotonic regression "
            f"needs at least {FEWEST_FOR_ISOTONIC} of each: use platt"
        )
    if choice != "auto":
        return (choice,)
    return ("platt", "temperature", "isotonic") if enough else ("platt", "temperature")


def _best(methods: Sequence[Method], loss: Callable[[Method], float]) -> Method:
    return methods[0] if len(methods) == 1 else min(methods, key=loss)
