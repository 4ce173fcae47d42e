"""The command line: what is asked for becomes calls, what came of it becomes an exit code."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import structlog
import typer

from worker import __version__
from worker.commands.render import Exit, Format, chosen
from worker.errors import Halted, Misconfigured
from worker.logs import set_up_logs
from worker.settings import Settings
from worker.settings_load import load_settings

T = TypeVar("T")

_EXIT_CODES = """
Exit codes: 0 all allowed; 1 something is not; 2 usage or configuration; 3 something could not be
examined, or was not answered; 70 a failure of imagewarden itself. Where several apply, the highest.
"""

cli = typer.Typer(
    name="imagewarden",
    help="Self-hosted image moderation: image URLs on a Kafka topic in, verdicts out.",
    epilog="Settings are environment variables IMAGEWARDEN_…, or a TOML file that "
    "IMAGEWARDEN_CONFIG names; README.md lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
dlq = typer.Typer(no_args_is_help=True, help="Dead letters: what was not a request, and why.")
policy = typer.Typer(no_args_is_help=True, help="Policies: check and calibrate them.")
cli.add_typer(dlq, name="dlq")
cli.add_typer(policy, name="policy")

Policies = Annotated[
    list[Path] | None,
    typer.Option("--policy", help="Policy file; may be repeated. The first is the default."),
]
Formats = Annotated[
    Format | None,
    typer.Option(
        help="A table for people, or a JSON object a line; by itself, jsonl in a pipe.",
        show_default=False,
    ),
]


@cli.command()
def run(policies: Policies = None) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    The first signal lets the work in flight finish, commits and leaves the group; a second one
    exits at once.
    """
    from worker.app import run_worker

    settings = _settings(policies)
    set_up_logs(settings.log.level, settings.log.format)
    finish(run_worker(settings))


@cli.command(epilog=_EXIT_CODES)
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
    settings = _by_hand(
        policies, fetch={"allow": tuple(allow)} if allow else None, host={"share": 1.0}
    )
    raise typer.Exit(finish(command(settings, targets, chosen(format))))


@cli.command(epilog=_EXIT_CODES)
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

    raise typer.Exit(finish(command(_by_hand(), lines or ["-"], wait, tenant, chosen(format))))


@dlq.command("list")
def dlq_list(
    format: Formats = None,
    reason: Annotated[str | None, typer.Option(help="Only those with this reason.")] = None,
) -> None:
    """List the dead letters, oldest first."""
    from worker.commands.dlq import list_letters

    finish(list_letters(_by_hand(), chosen(format), reason))


@dlq.command("show")
def dlq_show(
    letter: Annotated[str, typer.Argument(help="PARTITION:OFFSET, as `dlq list` prints it.")],
) -> None:
    """Show one dead letter: why it is one, its headers, and its value as it came."""
    from worker.commands.dlq import show_letter

    finish(show_letter(_by_hand(), letter))


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
    finish(replay_letters(_by_hand(), letters or [], reason))


@policy.command("check")
def policy_check(
    files: Annotated[list[Path], typer.Argument(help="Policy files.")],
) -> None:
    """Print every problem of policy files, with file, line and column."""
    from worker.commands.policy import check

    raise typer.Exit(_reported(lambda: check(files)))


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

    settings = _by_hand([file])
    raise typer.Exit(_reported(lambda: calibrate(settings, file, labels, label or [], prevalence)))


@cli.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running, and print how to use it.")
    ] = False,
) -> None:
    """Show the whole service at work: broker, cache, image server and worker, all on loopback."""
    from worker.demo.show import show

    set_up_logs("warning", "auto")
    raise typer.Exit(_reported(lambda: show(keep=keep)))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"imagewarden {__version__}")
        raise typer.Exit


@cli.callback()
def _version(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    pass


def _by_hand(policies: list[Path] | None = None, **overrides: Any) -> Settings:
    """The settings of a command that a person runs, whose log tells of problems only."""
    settings = _settings(policies, **overrides)
    set_up_logs("warning", settings.log.format)
    # What its client says of an absent broker, we say in one sentence
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return settings


def _settings(policies: list[Path] | None = None, **overrides: Any) -> Settings:
    given = {name: value for name, value in overrides.items() if value is not None}
    if policies:
        given["policies"] = tuple(map(str, policies))
    return _reported(lambda: load_settings(given))


def finish(command: Coroutine[Any, Any, T]) -> T:
    """What ``command`` gives; what went wrong is reported, and becomes ``typer.Exit``."""
    return _reported(lambda: asyncio.run(command))


def _reported(command: Callable[[], T]) -> T:
    """What ``command`` gives; what went wrong as a sentence and an exit code."""
    try:
        return command()
    except Misconfigured as error:
        typer.echo(f"imagewarden: {error}", err=True)
        raise typer.Exit(Exit.USAGE) from None
    except ConnectionError as error:
        typer.echo(f"imagewarden: {error}", err=True)
        raise typer.Exit(Exit.NOT_EXAMINED) from None
    except Halted as halted:
        structlog.get_logger(__name__).error("halted", why=str(halted))
        raise typer.Exit(Exit.FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception:  # noqa: BLE001 - the border: what nobody foresaw becomes an exit code
        structlog.get_logger(__name__).exception("failed")
        raise typer.Exit(Exit.FAILED) from None


def main() -> None:
    sys.exit(cli())
