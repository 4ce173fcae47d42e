"""A worker whose encoder is killed by black images, as a driver is by some input nobody foresaw."""

from __future__ import annotations

import os
import signal

import typer

from tests.fakes import FakeEncoder
from worker.app import run_worker
from worker.cli import finish
from worker.logs import set_up_logs
from worker.settings_load import load_settings
from worker.types import Float32Rows, Pixels


class DeadlyEncoder(FakeEncoder):
    def encode_images(self, pixels: Pixels) -> Float32Rows:
        if (pixels.max(axis=(1, 2, 3)) < 16).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(pixels)


def main() -> None:
    settings = load_settings()
    set_up_logs(settings.log.level, settings.log.format)
    finish(run_worker(settings, load=lambda settings: DeadlyEncoder()))


if __name__ == "__main__":
    typer.run(main)
