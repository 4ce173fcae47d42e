"""A worker whose encoder is killed by black images, as a driver is by some input nobody foresaw."""

from __future__ import annotations

import os
import signal

import typer

from tests.e2e.fake_worker import work_with
from tests.fakes import FakeEncoder
from worker.types import Float32Rows, Pixels


class DeadlyEncoder(FakeEncoder):
    def encode_images(self, pixels: Pixels) -> Float32Rows:
        if (pixels.max(axis=(1, 2, 3)) < 16).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(pixels)


def main() -> None:
    work_with(DeadlyEncoder())


if __name__ == "__main__":
    typer.run(main)
