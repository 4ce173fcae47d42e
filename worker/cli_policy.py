"""The commands of ``imagewarden policy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.command_line import by_hand, reported

policy = typer.Typer(no_args_is_help=True, help="Policies: write, prove and ship them.")


@policy.command("check")
def policy_check(
    files: Annotated[list[Path], typer.Argument(help="Policy files.")],
) -> None:
    """Print every problem of policy files, with file, line and column."""
    from worker.commands.policy import check

    raise typer.Exit(reported(lambda: check(files)))


@policy.command("calibrate")
def policy_calibrate(
    file: Annotated[Path, typer.Argument(help="Policy file; calibrations are written into it.")],
    labels: Annotated[
        Path, typer.Option(help="CSV with the columns path (from its own folder) and label.")
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=CATEGORY", help="What a label means, where it is no category's id."
        ),
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of each category expected in live traffic.")
    ] = None,
) -> None:
    """Fit each category's probabilities to labelled images, and write them into the policy."""
    from worker.commands.policy import calibrate

    settings = by_hand([file])
    raise typer.Exit(reported(lambda: calibrate(settings, file, labels, label or [], prevalence)))
