"""The commands that look at what was decided before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.command_line import Allowed, Formats, Policies, by_hand, fetching, finish, settings_of
from worker.commands.render import chosen
from worker.logs import set_up_logs

embeddings = typer.Typer(no_args_is_help=True, help="What is kept of images that were examined.")


def register(cli: typer.Typer) -> None:
    """Adds the commands that stand by themselves."""
    cli.command()(redecide)
    cli.command()(search)
    cli.command()(feedback)


@embeddings.command("export")
def embeddings_export(
    out: Annotated[Path, typer.Option(metavar="PARQUET", help="The file to write.")],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="7d, 12h, 2026-11-01 or 2026-11-01T09:30 (UTC): first judged then."
        ),
    ] = "7d",
    until: Annotated[str | None, typer.Option(metavar="TIME", help="By itself, now.")] = None,
) -> None:
    """Write the past as Parquet: each verdict in force since a time, and its image's embedding.

    `policy backtest --input` reads it, and so does whatever reads Parquet. Verdicts without an
    embedding are in it too. The file appears when all of it is written.
    """
    from worker.commands.embeddings import export

    raise typer.Exit(finish(export(by_hand(), since, until, out)))


def redecide(
    file: Annotated[
        Path, typer.Option("--policy", metavar="NEW", help="The policy file to decide by.")
    ],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="7d, 12h, 2026-11-01 or 2026-11-01T09:30 (UTC): first judged then."
        ),
    ],
    until: Annotated[str | None, typer.Option(metavar="TIME", help="By itself, now.")] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Whose decisions: the id of a policy; by itself, NEW's own."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be published, and publish nothing.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also where the action stays as it is.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.1, help="Verdicts a second, at most.")] = 500.0,
    format: Formats = None,
) -> None:
    """Decide again on the past, and publish a verdict wherever the action changes.

    Works from the embeddings that were kept: nothing is fetched. Each new verdict supersedes the
    one in force, and repeats its request's metadata; what cannot be decided again is counted and
    left. The brake (limits.max_block_rate) is not applied. Try it with --dry-run first.

    It may be interrupted at any time: what was published lies on the topic, and a second run
    publishes the rest. Requests that a worker judges meanwhile are left to that verdict.
    """
    from worker.commands.redecide import RedecideOptions
    from worker.commands.redecide import redecide as command

    options = RedecideOptions(
        policy=file,
        since=since,
        until=until,
        of=of,
        dry_run=dry_run,
        everything=everything,
        rate=rate,
    )
    raise typer.Exit(finish(command(by_hand([file]), options, chosen(format))))


def search(
    query: Annotated[
        str, typer.Argument(help="A text, an image (a file or a URL), or the SHA-256 of one.")
    ],
    input: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PARQUET",
            help="The past as `embeddings export` wrote it; by itself, it is read from the topics.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="7d, 12h, 2026-11-01 or 2026-11-01T09:30 (UTC): first judged then. By itself, 7d, "
            "or all of a file.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="By itself, now.")] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="So many images.")] = 20,
    policies: Policies = None,
    format: Formats = None,
    allow: Allowed = None,
) -> None:
    """Find the images that were judged and are nearest to an image or a text.

    By the embeddings that were kept: no image is fetched but the one that is searched for. Write a
    text as a caption would be. Cosines of texts are low even for what they describe; those of the
    same picture are near 1. Searching by a SHA-256 needs no model.
    """
    from worker.commands.search import SearchOptions
    from worker.commands.search import search as command

    settings = by_hand(policies, **fetching(allow))
    options = SearchOptions(input or [], since, until, top)
    raise typer.Exit(finish(command(settings, query, options, chosen(format))))


def feedback(
    window: Annotated[
        str,
        typer.Option(metavar="TIME", help="Count what people decided in this time up to now."),
    ] = "30d",
    items: Annotated[
        int,
        typer.Option(
            min=1,
            help="Items remembered with the verdicts on them, and as many that people looked at.",
        ),
    ] = 200_000,
    once: Annotated[
        bool, typer.Option("--once", help="Print what the topics tell now, and end.")
    ] = False,
    format: Formats = None,
) -> None:
    """Tell how often people agree with what was decided: precision and recall as metrics.

    Joins the feedback topic with the verdicts, and serves /metrics until SIGTERM or Ctrl-C. One
    process is enough for a fleet.

    Recall is among images that people looked at: show them allowed ones too, and say by `sampled`
    which share of those they see.
    """
    from worker.commands.feedback import follow, report

    if once:
        finish(report(by_hand(), window, items, chosen(format)))
        return
    settings = settings_of()
    set_up_logs(settings.log.level, settings.log.format)
    finish(follow(settings, window, items))
