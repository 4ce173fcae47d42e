"""``imagewarden settings check``: whether a worker with these settings would work, and else why."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.client
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.assembly import decoder_of
from worker.commands.render import Exit, Format
from worker.commands.service_checks import Note, egress_problems, kafka_problems, redis_problems
from worker.endpoints import Health, open_endpoints
from worker.errors import Misconfigured, Unexaminable
from worker.perceptual import check_lists
from worker.policy_yaml import load_policy
from worker.settings import Settings
from worker.types import FramePlan, PreprocessSpec

Check = Callable[[Settings], Iterable[str]]

_ASK_SECONDS = 2.0
_UNIX = "unix:"


def check_settings(
    settings: Settings, seconds: float, format: Format, checks: Mapping[str, Check] | None = None
) -> Exit:
    """Prints a line for each check that is well, and one for each thing that is wrong.

    They run side by side; one that takes longer than ``seconds`` is left behind, and wrong.
    """
    deadline = time.monotonic() + seconds
    running = {name: _Running(check, settings) for name, check in (checks or CHECKS).items()}
    findings = []
    for name, each in running.items():
        each.thread.join(max(0.0, deadline - time.monotonic()))
        said = list(each.said)
        if each.thread.is_alive():
            said.append(f"it was not known within {seconds:g} s; try a longer --timeout")
        elif each.bug is not None:
            raise each.bug
        findings += [Finding(name, isinstance(each, Note), each) for each in said or [Note()]]
    _print(findings, format)
    return Exit.ALL_ALLOWED if all(each.ok for each in findings) else Exit.NOT_ALL_ALLOWED


class Finding(NamedTuple):
    check: str
    ok: bool
    says: str


@dataclass
class _Running:
    """A check on a thread that nobody waits for once time is up."""

    check: Check
    settings: Settings
    said: list[str] = field(default_factory=list)
    bug: Exception | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.said.extend(self.check(self.settings))
        except (Misconfigured, ConnectionError) as error:
            self.said.extend(str(error).splitlines())
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            self.bug = error


def _policy_problems(settings: Settings) -> Iterator[str]:
    model, seen = settings.model.name, dict[str, str]()
    for path in settings.policies:
        try:
            policy = load_policy(Path(path))
            check_lists(policy, wanted=settings.decode.perceptual_hash)
        except Misconfigured as error:
            yield from str(error).splitlines()
            continue
        model = model or policy.model
        if policy.model != model:
            yield (
                f"{path} is written for the model {policy.model!r}, but {model!r} would be loaded; "
                "change IMAGEWARDEN_MODEL__NAME, or `model` in the policy and calibrate it again"
            )
        if policy.id in seen:
            yield f"{path} has the id {policy.id!r}, as {seen[policy.id]} has; change one"
        seen[policy.id] = path


def _model_problems(settings: Settings) -> Iterator[str]:
    from worker.model_check import device_at_hand, model_at_hand  # torch

    model = settings.model
    try:
        name = model.name or load_policy(Path(settings.policies[0])).model
    except Misconfigured:
        yield "which model to load is not known, as the first policy cannot be read"
    else:
        yield Note(model_at_hand(name, model.checkpoint, model.config))
    yield Note(f"it would run on {device_at_hand(model.device)}")


def _decoder_problems(settings: Settings) -> Iterator[str]:
    buffer = io.BytesIO()
    # some megabytes if it may: a smaller one fits into what an interpreter has lying about
    side = min(1024, math.isqrt(settings.decode.max_pixels))
    Image.new("RGB", (side, side), "teal").save(buffer, "PNG")
    body = buffer.getvalue()
    spec = PreprocessSpec((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    async def decode() -> None:
        pool = decoder_of(settings, hashed=settings.decode.perceptual_hash)
        try:
            await pool.start()
            await pool.decode(body, hashlib.sha256(body).hexdigest(), spec, FramePlan())
        finally:
            await pool.close()

    try:
        asyncio.run(decode())
    except (Unexaminable, RuntimeError, OSError) as error:
        yield (
            f"the decoder's child processes do not decode a small image ({error}); check "
            "IMAGEWARDEN_DECODE__MEMORY_BYTES, and what the system lets processes have"
        )


def _endpoint_problems(settings: Settings) -> Iterator[str]:
    host, port = settings.http.host, settings.http.port
    if host.startswith(_UNIX):
        if not Path(host.removeprefix(_UNIX)).parent.is_dir():
            yield f"the folder of IMAGEWARDEN_HTTP__HOST ({host}) is not there; make it"
        return
    never = Health(False, "checking the settings")
    try:
        open_endpoints(host, port, live=lambda: never, ready=lambda: never).close()
    except Misconfigured as error:
        taken = getattr(error.__context__, "errno", None) == errno.EADDRINUSE
        if taken and _is_worker(host, port):
            yield Note(f"a worker serves on port {port} already")
        else:
            yield str(error)


def _is_worker(host: str, port: int) -> bool:
    """Whether a worker serves there, which may be the one with these settings."""
    connection = http.client.HTTPConnection(
        "127.0.0.1" if host == "0.0.0.0" else host, port, timeout=_ASK_SECONDS
    )
    try:
        connection.request("GET", "/metrics")
        return b"imagewarden_ready" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


CHECKS: Mapping[str, Check] = {
    "kafka": kafka_problems,
    "redis": redis_problems,
    "policies": _policy_problems,
    "model": _model_problems,
    "decoder": _decoder_problems,
    "egress": egress_problems,
    "endpoints": _endpoint_problems,
}


def _print(findings: Sequence[Finding], format: Format) -> None:
    if format is Format.JSONL:
        for finding in findings:
            typer.echo(json.dumps(finding._asdict()))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for check, ok, says in findings:
        state = Text("ok", style="green") if ok else Text("wrong", style="red")
        table.add_row(check, state, Text(says, style="dim" if ok else ""))
    # In a pipe there is no width to fit into
    Console(width=None if sys.stdout.isatty() else 160).print(table)
