"""The commands of ``imagewarden policy``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worker.cli_editing import register
from worker.command_line import (
    LABELS,
    Allowed,
    Caching,
    Formats,
    Labelled,
    Meanings,
    Source,
    SourceUntil,
    by_hand,
    fetching,
    finish,
    reported,
)
from worker.commands.render import chosen

policy = typer.Typer(no_args_is_help=True, help="Policies: write, prove and ship them.")


class Fitting(StrEnum):
    """The methods of calibration, and the choice among them."""

    PLATT = "platt"
    ISOTONIC = "isotonic"
    TEMPERATURE = "temperature"
    AUTO = "auto"


@policy.command("check")
def policy_check(
    files: Annotated[list[Path], typer.Argument(help="Policy files.")],
) -> None:
    """Print every problem of policy files, with file, line, column and what to write instead.

    What they name is looked at too: heads, lists of hashes, images of tests. Needs no model.
    Exits with 0 where there is no problem, else with 2.
    """
    from worker.commands.policy import check

    raise typer.Exit(reported(lambda: check(files)))


@policy.command("calibrate")
def policy_calibrate(
    file: Annotated[Path, typer.Argument(help="Policy file; calibrations are written into it.")],
    labels: Annotated[Path | None, LABELS] = None,
    label: Meanings = None,
    source: Source = None,
    source_until: SourceUntil = None,
    from_feedback: Annotated[
        bool,
        typer.Option(
            "--from-feedback",
            help="Instead of labels: what people said of the policy's own verdicts, with the "
            "embeddings that were kept.",
        ),
    ] = False,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="With --from-feedback: how far back.")
    ] = "30d",
    method: Annotated[
        Fitting,
        typer.Option(
            metavar="METHOD",
            help="How margins become probabilities: platt; isotonic, which needs 100 images of "
            "each kind; temperature; or auto, what does best on images that were held out.",
        ),
    ] = Fitting.PLATT,
    prevalence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CATEGORY=]SHARE",
            help="Share of live traffic that shows it, of one category or of all; kept in the "
            "file. Without it, probabilities are at the share among the labelled images.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write a report that a browser shows."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print, and leave the policy as it is.")
    ] = False,
    cache: Caching = True,
    allow: Allowed = None,
) -> None:
    """Fit each category's probabilities to labelled images, and write them into the policy.

    Thresholds with a target, such as  block: {target: {fpr: 0.005}},  are
    solved so that with 95 % confidence it is kept on images like these.

    Figures are of images that were held out of the fit, near-duplicates
    together, and whole sources where a category has three or more.

    Exits with 0 when every category with images was calibrated, and with 1
    when one was left as it was: too few images, prompts that tell nothing, or
    a target that the images cannot show.
    """
    from worker.commands.labelled import LabelOptions
    from worker.commands.policy_calibrate import CalibrateOptions, calibrate_by_labels

    settings = by_hand([file], **fetching(allow))
    options = CalibrateOptions(method.value, prevalence or (), dry_run, report)
    if (labels is None) != from_feedback:
        raise typer.BadParameter("give either --labels or --from-feedback")
    if labels is None:
        from worker.commands.policy_calibrate_feedback import calibrate_by_feedback

        raise typer.Exit(reported(lambda: calibrate_by_feedback(settings, file, since, options)))
    chosen_labels = LabelOptions(labels, label or (), source, source_until, cache)
    raise typer.Exit(reported(lambda: calibrate_by_labels(settings, file, chosen_labels, options)))


@policy.command("fit-head")
def policy_fit_head(
    file: Annotated[Path, typer.Argument(help="Policy file; the head is written into it.")],
    category: Annotated[
        str, typer.Argument(help="Its id. One that the policy lacks is added, on trial.")
    ],
    labels: Labelled,
    label: Meanings = None,
    source: Source = None,
    source_until: SourceUntil = None,
    weight: Annotated[
        float | None,
        typer.Option(
            help="What the head counts beside prompts, above 0 and below 1; by itself what the "
            "policy says, or else 0.5.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The head's file, from the policy's folder; by itself heads/ and the last part of "
            "the category's id.",
        ),
    ] = None,
    method: Annotated[
        Fitting,
        typer.Option(
            metavar="METHOD", help="How margins become probabilities, as in `policy calibrate`."
        ),
    ] = Fitting.PLATT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print, and leave everything as it is.")
    ] = False,
    cache: Caching = True,
    allow: Allowed = None,
) -> None:
    """Learn a category from labelled images, where prompts cannot say it.

    Fits a logistic regression on embeddings, with the penalty that does best on images that were
    held out, and calibrates it on such images alone. Near-duplicates are held out together, and
    sources that never show it whole, so that recognising a source is worth nothing. Prompts that
    the category has go on counting beside the head, and hold up better on images unlike these.

    Writes the head, a few KB, what it was fitted on beside it, and its calibration into the policy.
    Run it again rather than `policy calibrate`: only here are the margins those of unseen images.
    """
    from worker.commands.labelled import LabelOptions
    from worker.commands.policy_fit_head import HeadOptions, fit_head

    settings = by_hand([file], **fetching(allow))
    labelled = LabelOptions(labels, label or (), source, source_until, cache)
    options = HeadOptions(weight, out, method.value, dry_run)
    raise typer.Exit(reported(lambda: fit_head(settings, file, category, labelled, options)))


@policy.command("backtest")
def policy_backtest(
    file: Annotated[Path, typer.Argument(metavar="NEW", help="Policy file.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD", help="Another policy on the same embeddings; else what was decided then."
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Whose decisions: the id of a policy; by itself, NEW's own."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="7d, 12h, 2026-11-01 or 2026-11-01T09:30 (UTC); by itself 7d, and all of a file.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="By itself, now. With --input it needs --since."),
    ] = None,
    input: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet from `embeddings export`, or a folder of it, instead of the topics; "
            "may be repeated."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Also write a page, readable offline.")
    ] = None,
    urls: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Where images are, for the page's thumbnails: columns sha256 or item_id, and url "
            "or path.",
        ),
    ] = None,
    max_flips: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if a larger share than this flips."),
    ] = None,
    format: Formats = None,
) -> None:
    """Try a policy on the past: what it would have decided otherwise, and on whose images.

    Takes the verdicts since a time and the embeddings that were kept, from the topics or from
    Parquet: no image is fetched, and nothing is published. Tenants' thresholds, lists of hashes and
    frame rules apply as a worker has them; the brake (limits.max_block_rate) does not.

    Prints flips by category, tenant and day, and those that change most; as JSON lines, every flip.

    Exits with 0, also where decisions flip; with 1 where more flip than --max-flips allows.
    """
    from worker.commands.policy_backtest import BacktestOptions, run_backtest

    options = BacktestOptions(
        new=file,
        against=against,
        of=of,
        since=since,
        until=until,
        inputs=input or [],
        report=report,
        urls=urls,
        max_flips=max_flips,
    )
    raise typer.Exit(finish(run_backtest(by_hand([file]), options, chosen(format))))


register(policy)
