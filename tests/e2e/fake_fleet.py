"""What `imagewarden run --processes 2` is, with workers that see nothing but colours."""

from __future__ import annotations

import typer

from tests.e2e.scene import FAKE_WORKER
from worker.command_line import finish
from worker.commands.run import run_many
from worker.logs import set_up_logs
from worker.settings_load import load_settings
from worker.supervisor import Patience


def main() -> None:
    settings = load_settings()
    set_up_logs(settings.log.level, settings.log.format)
    patience = Patience(first_seconds=0.05)
    raise typer.Exit(finish(run_many(settings, 2, FAKE_WORKER, patience)))


if __name__ == "__main__":
    typer.run(main)
