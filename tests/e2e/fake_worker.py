"""A worker whose encoder sees nothing but colours: it starts in a second, and needs no torch."""

from __future__ import annotations

import typer

from tests.fakes import FakeEncoder
from worker.app import run_worker
from worker.command_line import finish
from worker.logs import set_up_logs
from worker.seams import Encoder
from worker.settings_load import load_settings


def work_with(encoder: Encoder) -> None:
    settings = load_settings()
    set_up_logs(
        settings.log.level, settings.log.format, settings.worker if settings.log.worker else None
    )
    finish(run_worker(settings, load=lambda settings: encoder))


def main() -> None:
    work_with(FakeEncoder())


if __name__ == "__main__":
    typer.run(main)
