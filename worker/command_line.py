"""What every command needs: its settings, its log, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import structlog
import typer

from worker.commands.render import Exit, Format
from worker.errors import Halted, Misconfigured
from worker.logs import set_up_logs
from worker.settings import Settings
from worker.settings_load import load_settings

T = TypeVar("T")

EXIT_CODES = """
Exit codes: 0 all allowed; 1 something is not; 2 usage or configuration; 3 something could not be
examined, or was not answered; 70 a failure of imagewarden itself. Where several apply, the highest.
"""

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

LABELS = typer.Option(
    "--labels",
    help="CSV with the columns path (from its own folder) or url, label and, if you like, "
    "split (train, test), weight and source; or a folder with one folder for each label.",
)
Labelled = Annotated[Path, LABELS]
Meanings = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="LABEL=CATEGORY",
        help="What a label means, where it is neither a category's id nor the last part of one; "
        "none for no category.",
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Says where images come from; by itself the column source, if there is one.",
    ),
]
SourceUntil = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Only what stands before TEXT is the source, as : in repository:path.",
    ),
]
Caching = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep embeddings on this machine, so that they are computed once.",
    ),
]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", help="host:port that may be reached although it is not public."),
]


def fetching(allow: list[str] | None) -> dict[str, Any]:
    """The settings of a command that looks at images for one person alone: nobody else waits for
    what one host holds up."""
    return {"fetch": {"allow": tuple(allow)} if allow else None, "host": {"share": 1.0}}


def by_hand(policies: list[Path] | None = None, **overrides: Any) -> Settings:
    """The settings of a command that a person runs, whose log tells of problems only."""
    settings = settings_of(policies, **overrides)
    set_up_logs("warning", settings.log.format)
    # What its client says of an absent broker, we say in one sentence
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return settings


def settings_of(policies: list[Path] | None = None, **overrides: Any) -> Settings:
    given = {name: value for name, value in overrides.items() if value is not None}
    if policies:
        given["policies"] = tuple(map(str, policies))
    return reported(lambda: load_settings(given))


def finish(command: Coroutine[Any, Any, T]) -> T:
    """What ``command`` gives; what went wrong is reported, and becomes ``typer.Exit``."""
    return reported(lambda: asyncio.run(command))


def reported(command: Callable[[], T]) -> T:
    """What ``command`` gives; what went wrong as a sentence and an exit code."""
    try:
        return command()
    except Misconfigured as error:
        typer.echo(f"imagewarden: {error}", err=True)
        raise typer.Exit(Exit.USAGE) from None
    except BrokenPipeError:
        # Who reads the output has seen enough, as `head` has: what is left to write goes nowhere,
        # and the code is a shell's for SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
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
