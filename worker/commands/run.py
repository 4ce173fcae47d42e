"""`imagewarden run --processes N`: one supervisor, N workers, each a member of the group."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from worker.endpoints import open_endpoints
from worker.settings import PREFIX, Settings
from worker.supervised import all_live, metrics_of, one_ready
from worker.supervisor import Member, Patience, Supervisor

_log = structlog.get_logger(__name__)


async def run_many(
    settings: Settings, processes: int, command: Sequence[str], patience: Patience | None = None
) -> int:
    """Until SIGTERM or Ctrl-C, which let all of them finish what is in flight; a second one ends
    all at once. The highest exit code.

    ``command`` runs a worker with the settings of its environment. Raises ``Misconfigured``.
    """
    folder = Path(tempfile.mkdtemp(prefix="imagewarden-"))
    try:
        members = [
            Member(
                command, environment(settings, number, processes, folder), _socket(folder, number)
            )
            for number in range(processes)
        ]
        supervisor = Supervisor(members, patience)
        places = supervisor.places
        endpoints = open_endpoints(
            settings.http.host,
            settings.http.port,
            live=partial(all_live, places),
            ready=partial(one_ready, places),
            registry=metrics_of(places),
        )
        try:
            _log.info("serving", address=endpoints.address, processes=processes)
            _stop_on_signals(supervisor, folder)
            code = await supervisor.run()
        finally:
            endpoints.close()
        _log.info("all stopped", exit_code=code)
        return code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(settings: Settings, number: int, processes: int, folder: Path) -> dict[str, str]:
    """This process's, and what the worker of that number has for itself alone. Its names are the
    same whenever it is started again: with exactly_once it then ends what it left open."""
    own = {
        "WORKER": f"{settings.worker}-{number}",
        "LOG__WORKER": "true",
        "HTTP__HOST": f"unix:{_socket(folder, number)}",
    }
    if settings.kafka.transactional_id is not None:
        own["KAFKA__TRANSACTIONAL_ID"] = f"{settings.kafka.transactional_id}-{number}"
    own = {f"{PREFIX}{name}": value for name, value in own.items()}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in own}
    # by itself, torch takes all cores in each process
    share = {"OMP_NUM_THREADS": str(max(1, _cores() // processes))}
    return share | inherited | own


def _socket(folder: Path, number: int) -> Path:
    return folder / f"{number}.sock"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop_on_signals(supervisor: Supervisor, folder: Path) -> None:
    asked = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal asked
        if asked:
            supervisor.kill()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + number)
        asked = True
        _log.info("stopping", signal=number.name, again="exits at once")
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
