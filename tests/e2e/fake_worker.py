"""A worker whose encoder sees nothing but colours: it starts in a second, and needs no torch."""

from __future__ import annotations

import asyncio

from tests.fakes import FakeEncoder
from worker.app import run_worker
from worker.logs import set_up_logs
from worker.settings import load_settings


def main() -> None:
    settings = load_settings()
    set_up_logs(settings.log.level, settings.log.format)
    asyncio.run(run_worker(settings, load=lambda settings: FakeEncoder()))


if __name__ == "__main__":
    main()
