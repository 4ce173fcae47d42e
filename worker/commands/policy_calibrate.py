"""``imagewarden policy calibrate``: fit a policy's probabilities to labelled images."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker.assembly import load_model
from worker.authoring.calibrate import Choice, Options, calibrate
from worker.authoring.embed_examples import Embedded
from worker.authoring.evidence import stated_prevalences, with_calibrations
from worker.authoring.head_file import known_by_heart
from worker.authoring.html import check_place, write_page
from worker.authoring.policy_file import PolicyFile
from worker.authoring.quantities import percent
from worker.authoring.results import Calibrated, Fit, Interval, ThresholdReport
from worker.commands.labelled import LabelOptions, embedded
from worker.commands.render import Exit
from worker.compile import compile_policy, texts_of
from worker.errors import Misconfigured
from worker.policy import check_model
from worker.seams import Encoder
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What the options of the command say. ``prevalence`` is SHARE or CATEGORY=SHARE each."""

    method: Choice = "platt"
    prevalence: Sequence[str] = ()
    dry_run: bool = False
    report: Path | None = None


def calibrate_by_labels(
    settings: Settings,
    path: Path,
    label_options: LabelOptions,
    options: CalibrateOptions,
    *,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Fits the policy's categories to the labelled images, writes the fits into it, and prints
    them."""
    # what is wrong with any of these should not wait for the model to load
    file = PolicyFile.read(path)
    labels = label_options.read(file.policy)
    fitting = fit_options(file, options)
    encoder = load(settings)
    check_model(file.policy, encoder.info)
    found = embedded(
        settings,
        encoder,
        file.policy,
        labels,
        cache=label_options.cache,
        thumbnails=options.report is not None,
    )
    return calibrate_examples(
        file, encoder, found, fitting, options, meanings=labels.meanings, notes=labels.notes
    )


def calibrate_examples(
    file: PolicyFile,
    encoder: Encoder,
    found: Embedded,
    fitting: Options,
    options: CalibrateOptions,
    *,
    meanings: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Exit:
    """The same with examples from anywhere."""
    texts = texts_of(file.policy)
    embeddings = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    compiled = compile_policy(file.policy, encoder.info, embeddings)
    sha256s = [example.embedding.key.sha256 for example in found.examples]
    known = known_by_heart(file.policy, file.path.parent, sha256s)
    calibrated = replace(
        calibrate(compiled, encoder.info, found.examples, fitting, refused=known),
        left_out=found.left_out,
        notes=(*notes, *found.notes),
        meanings=meanings,
    )
    today = datetime.now(UTC).date()
    print_calibrated(calibrated)
    if options.report is not None:
        from worker.authoring.report import calibration_page  # and scikit-learn's metrics

        write_page(options.report, calibration_page(calibrated, today))
    if not options.dry_run:
        file.write(with_calibrations(file.text, calibrated, today))
    meant = set(meanings.values())
    refused = any(
        fit.why_not_written and (fit.positives or fit.category in meant) for fit in calibrated.fits
    )
    return Exit.NOT_ALL_ALLOWED if refused else Exit.ALL_ALLOWED


def fit_options(file: PolicyFile, options: CalibrateOptions) -> Options:
    """Prevalences that the file states, and those that the command does. Raises ``Misconfigured``
    for what is wrong with the options."""
    if options.report is not None:
        check_place(options.report)
    ids = [category.id for category in file.policy.categories]
    shares = dict(stated_prevalences(file.text))
    for stated in options.prevalence:
        category, equals, number = stated.rpartition("=")
        if equals and category not in ids:
            raise Misconfigured(
                f"--prevalence {stated}: no category is named {category!r}; there are: "
                f"{', '.join(ids)}"
            )
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise Misconfigured(
                f"--prevalence {stated}: write a share above 0 and below 1, or CATEGORY=SHARE"
            )
        shares.update(dict.fromkeys([category] if equals else ids, share))
    return Options(options.method, shares)


# ---------------------------------------------------------------- printing


def print_calibrated(calibrated: Calibrated) -> None:
    """The table to standard output; what to think of it, and what was left out, to standard
    error."""
    # in a pipe there is no width to fit into
    Console(width=None if sys.stdout.isatty() else 160).print(_table(calibrated.fits))
    for fit in calibrated.fits:
        for warning in fit.warnings if fit.refused is None else ():
            typer.echo(f"{fit.category}: {warning}", err=True)
    if any(fit.calibration and fit.prevalence is None for fit in calibrated.fits):
        typer.echo(
            "probabilities are at the share of positives among these images; where live traffic "
            "has another, state it with --prevalence",
            err=True,
        )
    for note in calibrated.notes:
        typer.echo(note, err=True)
    for name, why in calibrated.left_out:
        typer.echo(f"left out {name}: {why}", err=True)


def _table(fits: Sequence[Fit]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("category", overflow="fold")
    # folding too: else names and thresholds have no room left on a narrow terminal
    for column in ("images", "AUROC", "ECE"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("thresholds on held-out images, with 95 % intervals", overflow="fold")
    for fit in fits:
        images = f"{fit.positives} + {fit.negatives}"
        if fit.refused is not None:
            table.add_row(fit.category, images, "", "", f"left as it was: {fit.refused}")
            continue
        assert fit.auroc is not None and fit.ece is not None
        lines = [_threshold(threshold) for threshold in fit.thresholds]
        if fit.why_not_written is not None:
            lines.append("left as it was, since not all of its targets can be met")
        table.add_row(fit.category, images, _number(fit.auroc), _number(fit.ece), "\n".join(lines))
    return table


def _threshold(report: ThresholdReport) -> str:
    if report.refused is not None:
        return f"{report.action}: {report.refused}"
    assert report.value is not None and report.fpr is not None and report.recall is not None
    rates = f"FPR {_share(report.fpr)}, recall {_share(report.recall)}"
    if report.precision is not None:
        rates += f", precision {_share(report.precision)}"
    solved = f" (for {report.target.rate} {percent(report.target.value)})" if report.target else ""
    return f"{report.action} {report.value:g}{solved}: {rates}"


def _number(of: Interval) -> str:
    return f"{of.value:.3f} ({of.low:.3f}–{of.high:.3f})"


def _share(of: Interval) -> str:
    return f"{percent(of.value)} ({percent(of.low)}–{percent(of.high)})"
