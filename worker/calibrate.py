"""Fit a policy's calibrations to labelled images, and write them into its file with their evidence.

A calibration turns a category's margin into the probability that a moderator would say yes. It is
fitted on what the worker itself would see: the same decoding, views, float16 embeddings, and the
highest margin over an image's rows.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
from ruamel.yaml import YAML

from worker.compile import compile_policy, texts_of
from worker.errors import Misconfigured, Unexaminable
from worker.imaging import Limits, decode
from worker.platt import (
    Floats,
    Labels,
    auroc,
    expected_calibration_error,
    fit_platt,
    held_out,
    log_odds,
    sigmoid,
)
from worker.policy import Category, check_model, margin_digest
from worker.policy_edit import Entries, replace_file, with_calibrations
from worker.policy_yaml import parse_policy, read_policy
from worker.score import CompiledPolicy, score
from worker.seams import Encoder
from worker.types import Pixels, digest_of

_FEWEST: Final = 10  # of each kind; two numbers cannot be told from fewer
_SMALLEST_SCALE: Final = 0.001  # below it no margin makes a difference
_IMAGES_AT_ONCE: Final = 64
_LIMITS: Final = Limits(max_pixels=100_000_000, max_total_pixels=500_000_000)


@dataclass(frozen=True, slots=True)
class CategoryReport:
    """How a category was calibrated, by labelled images at their own share of positives.

    ``refused`` says why it was left as it was; otherwise all that follows is there. ``ece`` and
    ``reached`` are measured on images that were held out of the fit. ``reached`` has, by action,
    the shares of positives and of negatives that reach its threshold, at the stated prevalence.
    """

    category: str
    positives: int
    negatives: int
    refused: str | None = None
    auroc: float | None = None
    ece: float | None = None
    scale: float | None = None
    bias: float | None = None
    reached: Mapping[str, tuple[float, float]] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled images in the order of their file: contents' SHA-256, labels, and margins, [images,
    categories]. ``unexaminable`` has those that were left out, each with the reason."""

    sha256: Sequence[str]
    labels: Sequence[str]
    margins: Floats
    unexaminable: Sequence[tuple[Path, str]]


def calibrate_policy(
    policy_path: Path,
    labels_csv: Path,
    *,
    encoder: Encoder,
    label_map: Mapping[str, str] | None = None,
    prevalence: Mapping[str, float] | float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[CategoryReport], Labelled]:
    """Calibrate the categories of ``policy_path`` that ``labels_csv`` has images of.

    The CSV has the columns ``path``, relative to its own folder, and ``label``. A label means the
    category that ``label_map`` gives, or whose id, or whose id's last part, equals it; what means
    none is a negative for all. Images that cannot be examined are left out, and named in what is
    returned. ``prevalence`` is the share of live traffic expected to be positive,
    for all categories or by id; unset, what the policy already says, or else the data's own share.
    ``progress`` is told how many images of how many are done.

    Raises ``Misconfigured``, before anything is written, where the policy is for another model, or
    no image can be examined, or no label means a category.
    """
    raw = read_policy(policy_path)
    policy = parse_policy(raw, str(policy_path))
    check_model(policy, encoder.info)
    texts = texts_of(policy)
    embeddings = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    compiled = compile_policy(policy, encoder.info, embeddings)
    rows = _read_labels(labels_csv)
    meanings = _meanings({label for _, label in rows}, compiled.categories, label_map or {})
    labelled = _examine(rows, compiled, encoder, progress)

    text = raw.decode("utf-8-sig")
    shares = _shares(text, compiled.categories, prevalence)
    data = digest_of(sorted(zip(labelled.sha256, labelled.labels, strict=True)))
    reports, entries = [], {}
    for index, category in enumerate(compiled.categories):
        positive = np.array([meanings.get(label) == category.id for label in labelled.labels])
        share = shares.get(category.id)
        report = _fit(category, labelled.margins[:, index], positive, share)
        reports.append(report)
        if report.refused is None:
            fitted_for = margin_digest(policy, category, encoder.info)
            entries[category.id] = _entries(report, fitted_for, data, share)
    edited = with_calibrations(text, entries).encode()
    parse_policy(edited, str(policy_path))
    replace_file(policy_path, edited)
    return reports, labelled


def _read_labels(labels_csv: Path) -> list[tuple[Path, str]]:
    try:
        with labels_csv.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if not {"path", "label"} <= set(reader.fieldnames or ()):
                raise Misconfigured(f"{labels_csv} lacks the columns `path` and `label`; add them")
            return [(labels_csv.parent / row["path"], row["label"].strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Misconfigured(f"{labels_csv} cannot be read as CSV ({error})") from error


def _meanings(
    labels: Iterable[str], categories: Sequence[Category], label_map: Mapping[str, str]
) -> dict[str, str]:
    """Category ids by label."""
    ids = [category.id for category in categories]
    if unknown := sorted(set(label_map.values()) - set(ids)):
        raise Misconfigured(f"no category is named {unknown[0]!r}; there are: {', '.join(ids)}")
    if unused := sorted(set(label_map) - set(labels)):
        raise Misconfigured(
            f"no image is labelled {unused[0]!r}; there are: {', '.join(sorted(labels))}"
        )
    by_last_part = {id_.rpartition(".")[2]: id_ for id_ in reversed(ids)}
    known = {**by_last_part, **{id_: id_ for id_ in ids}, **label_map}
    meanings = {label: known[label] for label in labels if label in known}
    if not meanings:
        raise Misconfigured(
            f"none of the labels ({', '.join(sorted(labels))}) means a category "
            f"({', '.join(ids)}); say which means which"
        )
    return meanings


def _examine(
    rows: Sequence[tuple[Path, str]],
    compiled: CompiledPolicy,
    encoder: Encoder,
    progress: Callable[[int, int], None],
) -> Labelled:
    digests, labels, unexaminable = [], [], []
    margins: list[Floats] = []
    waiting: list[Pixels] = []

    def embed() -> None:
        embeddings = encoder.encode_images(np.concatenate(waiting)).astype(np.float16)
        ends = np.cumsum([len(pixels) for pixels in waiting])
        by_image = np.split(score(compiled, embeddings).margins, ends[:-1])
        margins.extend(of_image.max(axis=0) for of_image in by_image)
        waiting.clear()

    for done, (path, label) in enumerate(rows, start=1):
        try:
            body = path.read_bytes()
            sha256 = hashlib.sha256(body).hexdigest()
            decoded = decode(body, sha256, encoder.info.preprocess, compiled.policy.plan, _LIMITS)
        except (OSError, Unexaminable) as error:
            unexaminable.append((path, str(error)))
            continue
        digests.append(sha256)
        labels.append(label)
        waiting.append(decoded.pixels)
        if len(waiting) == _IMAGES_AT_ONCE:
            embed()
            progress(done, len(rows))
    if waiting:
        embed()
    progress(len(rows), len(rows))
    if not margins:
        raise Misconfigured("none of the labelled images can be examined; check their paths")
    return Labelled(digests, labels, np.array(margins), unexaminable)


def _shares(
    text: str, categories: Sequence[Category], prevalence: Mapping[str, float] | float | None
) -> dict[str, float]:
    """The prevalence of each category that has one, by id."""
    ids = [category.id for category in categories]
    if isinstance(prevalence, int | float):
        given = dict.fromkeys(ids, float(prevalence))
    else:
        given = dict(prevalence or {})
    if unknown := sorted(given.keys() - set(ids)):
        raise Misconfigured(f"no category is named {unknown[0]!r}; there are: {', '.join(ids)}")
    if wrong := [share for share in given.values() if not 0 < share < 1]:
        raise Misconfigured(f"the prevalence {wrong[0]:g} is no share above 0 and below 1")
    written = YAML(typ="safe", pure=True).load(text)["categories"]
    kept = {
        category["id"]: category["calibration"]["prevalence"]
        for category in written
        if "prevalence" in category.get("calibration", ())
    }
    return {**kept, **given}


def _fit(
    category: Category, margins: Floats, positive: Labels, prevalence: float | None
) -> CategoryReport:
    positives = int(positive.sum())
    counts = (category.id, positives, len(positive) - positives)
    if min(counts[1:]) < _FEWEST:
        why = f"needs at least {_FEWEST} images that show it and {_FEWEST} that do not"
        return CategoryReport(*counts, refused=why)
    fitted = fit_platt(margins, positive)
    if fitted.scale < _SMALLEST_SCALE:
        why = "its margins are no higher for images that show it; reword its prompts"
        return CategoryReport(*counts, refused=why)
    own_share = positives / len(positive)
    unseen = held_out(margins, positive)
    ece = expected_calibration_error(sigmoid(unseen), positive)
    if prevalence is not None:
        fitted = fitted.at_prevalence(own_share, prevalence)
        unseen += log_odds(prevalence) - log_odds(own_share)
    thresholds = {"review": category.thresholds.review, "block": category.thresholds.block}
    return CategoryReport(
        *counts,
        auroc=auroc(margins, positive),
        ece=ece,
        scale=fitted.scale,
        bias=fitted.bias,
        reached={
            action: (float(reached[positive].mean()), float(reached[~positive].mean()))
            for action, threshold in thresholds.items()
            if threshold is not None
            for reached in [sigmoid(unseen) >= threshold]
        },
    )


def _entries(
    report: CategoryReport, fitted_for: str, data: str, prevalence: float | None
) -> Entries:
    """The calibration as it is written. Digits beyond these are noise."""
    assert report.scale is not None and report.bias is not None and report.ece is not None
    return {
        "method": "platt",
        "scale": round(report.scale, 4),
        "bias": round(report.bias, 4),
        "for": fitted_for,
        "data": data,
        "positives": report.positives,
        "negatives": report.negatives,
        **({} if prevalence is None else {"prevalence": prevalence}),
        "ece": round(report.ece, 4),
        "date": date.today().isoformat(),
    }
