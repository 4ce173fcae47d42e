"""Sample images without end, judged by a worker."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.scene import PATIENCE_SECONDS, fake_worker
from worker.children import die_with_parent
from worker.demo.stage import Exchange, Stage
from worker.schema import Verdict


@contextmanager
def samples(on: Stage) -> Iterator[str]:
    """Runs until the end, 20 a second; its images' host and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.demo.samples", "--rate", "20"],
        env={**os.environ, **on.environment()},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    try:
        assert process.stdout is not None
        told = re.match(r"images at http://(\S+), 20 requests a second", process.stdout.readline())
        assert told is not None
        yield told[1]
    finally:
        process.kill()
        process.communicate()


async def test_samples_are_fetched_and_judged(on: Stage) -> None:
    async with Exchange(on) as exchange, asyncio.timeout(PATIENCE_SECONDS):
        with samples(on) as address, fake_worker(on, FETCH__ALLOW=address):
            answers = [await exchange.answer() for _ in range(10)]
    verdicts = [answer for _, answer in answers if isinstance(answer, Verdict)]
    assert len(verdicts) == len(answers)
    assert {verdict.tenant for verdict in verdicts} == {"samples"}
    assert sum(verdict.status == "ok" for verdict in verdicts) > len(verdicts) / 2
