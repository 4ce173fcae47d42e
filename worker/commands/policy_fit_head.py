"""``imagewarden policy fit-head``: learn a category from labelled images."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker.assembly import load_model
from worker.authoring.calibrate import Choice, Options
from worker.authoring.edit import with_category, with_keys
from worker.authoring.embed_examples import Embedded
from worker.authoring.evidence import stated_prevalences, with_calibrations
from worker.authoring.fit_head import Proved, Taught, alone, prove, provenance, teach
from worker.authoring.head_file import placeholder, written
from worker.authoring.heads import check_counts
from worker.authoring.labels import Labels, shown_by
from worker.authoring.policy_file import PolicyFile
from worker.commands.labelled import LabelOptions, embedded
from worker.commands.policy_calibrate import print_calibrated
from worker.commands.render import Exit
from worker.compile import texts_of
from worker.errors import Misconfigured
from worker.policy import Policy, check_model
from worker.policy_files import PolicyFiles
from worker.policy_yaml import parse_policy, read_policy
from worker.seams import Encoder
from worker.settings import Settings

_BESIDE_PROMPTS: Final = 0.5


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What the options of the command say. ``file`` is the head's, from the policy's folder."""

    weight: float | None = None
    file: str | None = None
    method: Choice = "platt"
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A policy as it will be, but for the head and its calibration: ``text`` names ``head`` as the
    file of ``category``, which the policy had or, if it is ``new``, now has."""

    path: Path
    raw: bytes
    text: str
    category: str
    head: str
    new: bool

    def policy(self, content: bytes) -> Policy:
        """With this content of the head's file. Raises ``InvalidPolicy``."""
        files = PolicyFiles(self.path.parent, given={self.head: content})
        return parse_policy(self.text.encode(), str(self.path), unsolved=True, files=files)


def fit_head(
    settings: Settings, path: Path, category: str, labelled: LabelOptions, options: HeadOptions
) -> Exit:
    """Fits a head and writes it and its calibration, with what is known of them."""
    # what is wrong with any of these should not wait for the model to load
    draft = draft_of(path, category, options)
    policy = draft.policy(placeholder())
    labels = labelled.read(policy)
    _check_labels(labels, policy, category)
    # the policy on disk may not be whole yet, but its draft says which model it is for
    named = {"name": settings.model.name or policy.model}
    model = settings.model.model_copy(update=named)
    encoder = load_model(settings.model_copy(update={"model": model}))
    check_model(policy, encoder.info)
    found = embedded(settings, encoder, policy, labels, cache=labelled.cache)
    found = replace(found, notes=(*labels.notes, *found.notes))
    return fit_examples(draft, encoder, found, options)


def draft_of(path: Path, category: str, options: HeadOptions) -> Draft:
    """Raises ``Misconfigured`` where the policy cannot have such a head."""
    raw = read_policy(path)
    default = f"heads/{category.rpartition('.')[2]}.safetensors"
    file = options.file or default
    # a head that the policy names already may not be there yet
    files = PolicyFiles(path.parent, given={file: placeholder()})
    policy = parse_policy(raw, str(path), unsolved=True, files=files)
    text = raw.decode("utf-8-sig")
    known = {each.id: each for each in policy.categories}
    before = known[category].head if category in known else None
    file = options.file or (before.file if before else default)
    _check_file(path.parent / file, file, policy, category)
    prompts = category in known and known[category].prompts
    if not prompts and options.weight not in (None, 1.0):
        raise Misconfigured(
            f"{category} has no prompts that a head could share with; add some to the policy, or "
            f"leave out --weight"
        )
    if category not in known:
        text = with_category(text, {"id": category, "head": file, "review": 0.5, "mode": "shadow"})
        return Draft(path, raw, text, category, file, new=True)
    if not prompts:
        return Draft(path, raw, with_keys(text, {category: {"head": file}}), category, file, False)
    weight = before.weight if before else _BESIDE_PROMPTS
    weight = weight if options.weight is None else options.weight
    if not 0 < weight < 1:
        raise Misconfigured(
            f"--weight {weight:g}: {category} has prompts, and either they or the head would count "
            f"for nothing; write a weight above 0 and below 1, or remove the prompts"
        )
    text = with_keys(text, {category: {"head": {"file": file, "weight": weight}}})
    return Draft(path, raw, text, category, file, new=False)


def _check_file(path: Path, name: str, policy: Policy, category: str) -> None:
    """No other's head may be written over."""
    heads = {each.id: each.head.file for each in policy.categories if each.head}
    if others := [id_ for id_, file in heads.items() if file == name and id_ != category]:
        raise Misconfigured(f"{name} is the head of {others[0]}; name another file with --out")
    if path.exists() and heads.get(category) != name:
        raise Misconfigured(
            f"{path} is there already, and is not the head of {category}; name another file with "
            f"--out, or remove it"
        )


def _check_labels(labels: Labels, policy: Policy, category: str) -> None:
    """Before anything is embedded."""
    shows = [
        shown_by(image.label, labels, policy.categories).get(category)
        for image in labels.images
        if image.split != "test"
    ]
    if not any(shows):
        raise Misconfigured(
            f"no image to learn from is labelled as {category}; say which label means it with "
            f"--label LABEL={category}"
        )
    check_counts(np.array([one for one in shows if one is not None], dtype=np.bool_))


def fit_examples(draft: Draft, encoder: Encoder, found: Embedded, options: HeadOptions) -> Exit:
    """The same with examples that are embedded."""
    today = datetime.now(UTC).date()
    taught = teach(found.examples, draft.category, encoder.info, today)
    one = alone(draft.policy(taught.content), draft.category)
    texts = texts_of(one)
    embeddings = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    fitting = Options(options.method, stated_prevalences(draft.text))
    proved = prove(taught, one, encoder.info, embeddings, fitting)
    calibrated = replace(proved.calibrated, left_out=found.left_out, notes=found.notes)
    print_calibrated(calibrated)
    _print(draft, taught, proved, one)
    if (why := proved.fit.why_not_written) is not None:
        raise Misconfigured(f"nothing was written: {why}")
    if not options.dry_run:
        _write(draft, taught, proved, with_calibrations(draft.text, calibrated, today))
    return Exit.ALL_ALLOWED


def _write(draft: Draft, taught: Taught, proved: Proved, text: str) -> None:
    """The head first: a policy without its file would be refused."""
    path = draft.path.parent / PurePosixPath(draft.head)
    with written(path, taught.content, provenance(taught, proved)):
        PolicyFile(draft.path, draft.raw, draft.policy(taught.content)).write(text)
    typer.echo(f"wrote {path} ({len(taught.content):,} bytes) and its calibration", err=True)
    if draft.new:
        typer.echo(
            f"{draft.category} is new, and on trial: `imagewarden policy promote {draft.path} "
            f"{draft.category}` turns it on",
            err=True,
        )


def _print(draft: Draft, taught: Taught, proved: Proved, one: Policy) -> None:
    """What the AUROC is with other weights of the head, and on sources it never saw."""
    [category] = one.categories
    assert category.head is not None
    weights = {**proved.others, category.head.weight: proved.fit}
    typer.echo(f"{draft.category}: L2 penalty, C = {taught.learned.strength:.3g}", err=True)
    for source, value in proved.unseen_sources.items():
        typer.echo(
            f"{draft.category}: AUROC {value:.3f} on images of {source}, by a head that never saw "
            f"that source",
            err=True,
        )
    if len(weights) < 2:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("weight of the head")
    for column in ("AUROC", "ECE"):
        table.add_column(column, justify="right", no_wrap=True)
    for weight, fit in sorted(weights.items()):
        name = "0 (prompts alone)" if not weight else f"{weight:g}"
        taken = " *" if weight == category.head.weight else ""
        figures = [
            f"{of.value:.3f} ({of.low:.3f}–{of.high:.3f})" if of else ""
            for of in (fit.auroc, fit.ece)
        ]
        table.add_row(name + taken, *figures)
    # in a pipe there is no width to fit into
    Console(width=None if sys.stdout.isatty() else 160).print(table)
