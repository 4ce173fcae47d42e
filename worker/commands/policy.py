"""``imagewarden policy``: check policy files, and fit their probabilities to labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worker.assembly import load_model
from worker.calibrate import CategoryReport, calibrate_policy
from worker.commands.render import Exit, progress_bar
from worker.errors import Misconfigured
from worker.policy_yaml import InvalidPolicy, load_policy
from worker.settings import Settings


def check(files: Sequence[Path]) -> Exit:
    """Prints every problem of every file."""
    outcome = Exit.ALL_ALLOWED
    for file in files:
        try:
            policy = load_policy(file)
        except InvalidPolicy as error:
            typer.echo(str(error), err=True)
            outcome = Exit.USAGE
        else:
            typer.echo(
                f"{file}: policy {policy.id} version {policy.version} for {policy.model}, "
                f"{len(policy.categories)} categories: no problems"
            )
    return outcome


def calibrate(
    settings: Settings,
    file: Path,
    labels: Path,
    meanings: Sequence[str],
    prevalence: float | None,
) -> Exit:
    """Fits the policy's categories to the labelled images, writes the fits into it, and prints
    them."""
    load_policy(file)  # a typo should not wait for the model to load
    label_map = _label_map(meanings)
    encoder = load_model(settings)
    with progress_bar() as progress:
        task = progress.add_task("embedding the labelled images", total=None)
        reports, labelled = calibrate_policy(
            file,
            labels,
            encoder=encoder,
            label_map=label_map,
            prevalence=prevalence,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    Console().print(_table(reports))
    for path, why in labelled.unexaminable:
        typer.echo(f"left out {path}: {why}", err=True)
    return Exit.ALL_ALLOWED


def _label_map(meanings: Sequence[str]) -> Mapping[str, str]:
    label_map = {}
    for meaning in meanings:
        label, equals, category = meaning.partition("=")
        if not (label and equals and category):
            raise Misconfigured(f"--label {meaning}: write it as LABEL=CATEGORY")
        label_map[label] = category
    return label_map


def _table(reports: Sequence[CategoryReport]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("category", "images", "AUROC", "ECE", "scale", "bias"):
        table.add_column(column, justify="left" if column == "category" else "right")
    table.add_column("reached on held-out folds (of those that show it, of those that do not)")
    for report in reports:
        images = f"{report.positives} + {report.negatives}"
        if report.refused is not None:
            table.add_row(report.category, images, "", "", "", "", f"not fitted: {report.refused}")
            continue
        reached = ", ".join(
            f"{action} {shown:.1%} / {others:.1%}"
            for action, (shown, others) in (report.reached or {}).items()
        )
        fit = (f"{report.scale:.3f}", f"{report.bias:.3f}")
        figures = (f"{report.auroc:.3f}", f"{report.ece:.3f}", *fit)
        table.add_row(report.category, images, *figures, reached)
    return table
