"""The command line of those who run it: topics, settings, and what workers do now."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from worker.command_line import Formats, Policies, by_hand, reported
from worker.commands.render import chosen

topics = typer.Typer(no_args_is_help=True, help="The topics that workers read and write.")

settings = typer.Typer(no_args_is_help=True, help="What is set, and whether it works.")


def register(cli: typer.Typer) -> None:
    cli.add_typer(topics, name="topics")
    cli.add_typer(settings, name="settings")
    cli.command()(top)


@topics.command("create")
def topics_create(
    partitions: Annotated[
        int, typer.Option(min=1, help="Of each; no more workers than that have work.")
    ] = 12,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each partition; by itself, as many as there are brokers, up to 3.",
            show_default=False,
        ),
    ] = None,
    look_back_days: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="How far back `policy backtest` and `redecide` can look: verdicts, feedback and "
            "dead letters are kept so long, embeddings as much longer as they are cached.",
        ),
    ] = 30.0,
    wait_days: Annotated[
        float, typer.Option(min=0.01, help="How long requests wait while no worker runs.")
    ] = 7.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is missing, and what differs.")
    ] = False,
    format: Formats = None,
) -> None:
    """Create the topics that are missing, and say what is wrong with those that exist.

    Names and sizes are those of the settings. Never changes a topic that exists.

    Exit codes: 0 all are as they should be; 1 one differs, or brokers refuse it; 2 wrong settings;
    3 no broker answers.
    """
    from worker.commands.topics import CreateOptions, create_topics

    options = CreateOptions(
        partitions=partitions,
        replicas=replicas,
        look_back_days=look_back_days,
        wait_days=wait_days,
        dry_run=dry_run,
    )
    given = by_hand()
    raise typer.Exit(reported(lambda: create_topics(given, options, chosen(format))))


@settings.command("show")
def settings_show(
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those that something sets.")
    ] = False,
    format: Formats = None,
) -> None:
    """Show the settings in force, and where each came from; secrets are masked.

    README.md says what each means.
    """
    from worker.commands.settings_show import show_settings

    given = by_hand()
    reported(lambda: show_settings(given, chosen(format), changed=changed))


@settings.command("check")
def settings_check(
    policies: Policies = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For all of it.")
    ] = 30.0,
    format: Formats = None,
) -> None:
    """Try what the settings name: Kafka, topics and rights, Redis, policies, model, decoder, port.

    Says what is wrong in a sentence each. Loads no model, and changes nothing: of Redis it asks to
    keep one key for a second.

    Exit codes: 0 nothing is wrong; 1 something is; 2 the settings themselves are.
    """
    from worker.commands.settings_check import check_settings

    given = by_hand(policies)
    raise typer.Exit(reported(lambda: check_settings(given, timeout, chosen(format))))


def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENDPOINT]...",
            help="host:port, URLs or unix:PATH of metrics; by itself, the settings' own.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, and end.")] = False,
    format: Formats = None,
) -> None:
    """Watch workers: rate, lag, what is busy, decisions, cache, and the slowest stage.

    Ctrl-C ends it. In a pipe, or with --once or --format, it looks twice and prints what changed.

    Exit codes: 0; of a single frame 3 where an endpoint does not answer.
    """
    from worker.commands.top import default_endpoint, show_once, watch

    where = urls or [default_endpoint(by_hand())]
    if once or format or not sys.stdout.isatty():
        raise typer.Exit(reported(lambda: show_once(where, interval, chosen(format))))
    reported(lambda: watch(where, interval))
