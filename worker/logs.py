"""The log set-up: one JSON object a line, or readable colours on a terminal.

Lines go to standard error, so that a command's own output can be piped. kafka-python and others
log through the standard library; their lines take the same road.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import Literal

import structlog


def set_up_logs(
    level: str, format: Literal["auto", "console", "json"], worker: str | None = None
) -> None:
    """``worker`` is named in every line."""

    def name_worker(
        logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("worker", worker)
        return event

    console = sys.stderr.isatty() if format == "auto" else format == "console"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        *([name_worker] if worker else []),
    ]
    renderer: structlog.typing.Processor
    if console:
        renderer = structlog.dev.ConsoleRenderer(
            pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
    else:
        # Without the locals: they hold URLs with their credentials, and whole images
        transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(transform))
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("worker").setLevel(level.upper())


def nothing_after_the_log() -> None:
    """What libraries print while the interpreter ends, such as what torch's triton leaked, is no
    line of the log, and would stand where readers expect one."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()))
