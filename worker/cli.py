"""The command line: what is asked for becomes calls, what came of it becomes an exit code."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from worker import __version__, cli_operating
from worker.cli_past import embeddings, register
from worker.cli_planning import plan, simulate
from worker.cli_policy import policy
from worker.command_line import (
    EXIT_CODES,
    Formats,
    Policies,
    by_hand,
    finish,
    reported,
    settings_of,
)
from worker.commands.render import chosen
from worker.errors import Misconfigured
from worker.logs import nothing_after_the_log, set_up_logs

cli = typer.Typer(
    name="imagewarden",
    help="Self-hosted image moderation: image URLs on a Kafka topic in, verdicts out.",
    epilog="Settings are environment variables IMAGEWARDEN_…, or a TOML file that "
    "IMAGEWARDEN_CONFIG names; README.md lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
dlq = typer.Typer(no_args_is_help=True, help="Dead letters: what was not a request, and why.")
cli.add_typer(dlq, name="dlq")
cli.add_typer(policy, name="policy")
cli.add_typer(embeddings, name="embeddings")


@cli.command()
def run(
    policies: Policies = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Workers in processes of their own; one that dies is started again."
        ),
    ] = 1,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    The first signal lets the work in flight finish, commits and leaves the group; a second one
    exits at once.
    """
    settings = settings_of(policies)
    log = settings.log
    set_up_logs(log.level, log.format, settings.worker if log.worker else None)
    if processes > 1:
        from worker.commands.run import run_many

        command = [sys.executable, "-m", "worker", "run"]
        for policy in settings.policies:
            command += ["--policy", policy]
        raise typer.Exit(finish(run_many(settings, processes, command)))
    from worker.app import run_worker

    nothing_after_the_log()
    finish(run_worker(settings))


@cli.command(epilog=EXIT_CODES)
def scan(
    targets: Annotated[
        list[str], typer.Argument(help="Files, folders, URLs, or - for a list on standard input.")
    ],
    policies: Policies = None,
    format: Formats = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="host:port that may be reached although it is not public."),
    ] = None,
) -> None:
    """Judge images here and now, with no topic and no broker."""
    from worker.commands.scan import scan as command

    # Nobody else waits for what one host holds up
    settings = by_hand(
        policies, fetch={"allow": tuple(allow)} if allow else None, host={"share": 1.0}
    )
    raise typer.Exit(finish(command(settings, targets, chosen(format))))


@cli.command(epilog=EXIT_CODES)
def publish(
    lines: Annotated[
        list[str] | None,
        typer.Argument(help="URLs or JSON requests; none, or -, reads them from standard input."),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wait for the verdicts, at most so long."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant of requests that are URLs.")] = None,
    format: Formats = None,
) -> None:
    """Put requests on the request topic."""
    from worker.commands.publish import publish as command

    raise typer.Exit(finish(command(by_hand(), lines or ["-"], wait, tenant, chosen(format))))


@dlq.command("list")
def dlq_list(
    format: Formats = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
) -> None:
    """List the dead letters, oldest first."""
    from worker.commands.dlq import list_letters

    finish(list_letters(by_hand(), chosen(format), reason))


@dlq.command("show")
def dlq_show(
    letter: Annotated[str, typer.Argument(help="PARTITION:OFFSET, as `dlq list` prints it.")],
) -> None:
    """Show one dead letter: why it is one, its headers, and its value as it came."""
    from worker.commands.dlq import show_letter

    finish(show_letter(by_hand(), letter))


@dlq.command("replay")
def dlq_replay(
    letters: Annotated[
        list[str] | None, typer.Argument(help="PARTITION:OFFSET, as `dlq list` prints it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    reason: Annotated[str | None, typer.Option(help="With --all: only with this reason.")] = None,
) -> None:
    """Publish dead letters to the topic they came from, as they came.

    They stay on the dead-letter topic; what is still no request becomes a dead letter again.
    """
    from worker.commands.dlq import replay_letters

    if bool(letters) == everything:
        raise typer.BadParameter("name dead letters, or give --all")
    finish(replay_letters(by_hand(), letters or [], reason))


@cli.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running, and print how to use it.")
    ] = False,
) -> None:
    """Show the whole service at work: broker, cache, image server and worker, all on loopback."""
    from worker.demo.show import show

    set_up_logs("warning", "auto")
    raise typer.Exit(reported(lambda: show(keep=keep)))


@cli.command()
def bench(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCENARIO",
            help="model, end-to-end, no-op, cached, decode, fetch, redecide, reload or latency; "
            "by itself, all of them.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="What decides; by itself, a policy that fits any model."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="In place of the setting model.name.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="In place of the setting model.checkpoint.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="The checkpoint's architecture, for model.config.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="In place of the setting model.engine.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of each scenario.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="See that they work: a few images each, no figures.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the figures there; tells first what is worse than in the report there.",
        ),
    ] = None,
) -> None:
    """Measure the service on this machine: broker, cache, image server and worker, on loopback."""
    given = {"name": model, "checkpoint": checkpoint, "config": config, "engine": engine}
    named = {key: value for key, value in given.items() if value is not None}
    settings = by_hand(None, model=named or None)

    def measure() -> None:
        if find_spec("psutil") is None:
            raise Misconfigured("psutil is missing: pip install 'imagewarden[demo]'")
        from worker.commands.bench import bench as command

        command(settings, scenarios or [], policy=policy, rounds=rounds, quick=quick, json=json)

    reported(measure)


register(cli)
cli_operating.register(cli)
cli.command()(plan)
cli.command()(simulate)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"imagewarden {__version__}")
        raise typer.Exit


@cli.callback()
def _begin(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    # What fails before a command sets up its own goes to standard error too
    set_up_logs("warning", "auto")


def main() -> None:
    sys.exit(cli())
