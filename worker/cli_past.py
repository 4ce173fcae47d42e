"""The commands that look at what was decided before."""

from __future__ import annotations

import typer

embeddings = typer.Typer(no_args_is_help=True, help="What is kept of images that were examined.")


def register(cli: typer.Typer) -> None:
    """Adds the commands that stand by themselves."""
