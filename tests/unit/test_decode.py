from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.decoding import (
    LIMITS,
    PLAN,
    SPEC,
    children,
    decoded,
    is_gone,
    kills,
    photo,
    rejection,
    running,
    until,
)
from tests.references.make import display_p3, oriented
from worker import imaging
from worker.errors import ErrorCode, Unexaminable
from worker.types import Decoded


def huge_jpeg(progressive: bool = False) -> bytes:
    """30 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (6500, 4600), "teal").save(buffer, "JPEG", progressive=progressive)
    return buffer.getvalue()


def endless_gif() -> bytes:
    """A few megabytes that take most of a minute: one frame of four megapixels, 2,000 times."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "GIF")
    one = buffer.getvalue()
    frame = one.index(b"\x2c")
    return one[:frame] + one[frame:-1] * 2000 + b";"


ENDLESS = {"max_total_pixels": 10**12}


def mapped_into(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def is_busy(process: psutil.Process) -> bool:
    """It has computed for longer than starting takes."""
    times = process.cpu_times()
    return times.user + times.system > 2.0


# ---------------------------------------------------------------- the usual


async def test_what_comes_out_is_what_imaging_decodes() -> None:
    body = photo()
    sha256 = hashlib.sha256(body).hexdigest()
    async with running() as pool:
        result = await pool.decode(body, sha256, SPEC, PLAN)
    expected = imaging.decode(body, sha256, SPEC, PLAN, LIMITS)
    assert np.array_equal(result.pixels, expected.pixels)
    assert result.facts == expected.facts


async def test_pixels_can_be_written_to() -> None:
    async with running() as pool:
        assert (await decoded(pool, photo())).pixels.flags.writeable


async def test_each_caller_gets_its_own_image() -> None:
    bodies = [photo(seed) for seed in range(60)]
    async with running(processes=2) as pool:
        results = await asyncio.gather(*(decoded(pool, body) for body in bodies))
    for body, result in zip(bodies, results, strict=True):
        assert result.facts.sha256 == hashlib.sha256(body).hexdigest()


async def test_a_rejection_comes_back_as_it_was_raised() -> None:
    async with running() as pool:
        error = await rejection(pool, b"<!doctype html>")
    assert error.code is ErrorCode.NOT_AN_IMAGE
    assert "HTML" in error.detail
    assert not error.retryable


async def test_answers_that_arrive_together_are_told_apart() -> None:
    bodies = [photo(seed) if seed % 4 == 0 else b"<!doctype html>%d" % seed for seed in range(24)]
    async with running() as pool:
        results = await asyncio.gather(
            *(decoded(pool, body) for body in bodies), return_exceptions=True
        )
    for body, result in zip(bodies, results, strict=True):
        if isinstance(result, Decoded):
            assert result.facts.sha256 == hashlib.sha256(body).hexdigest()
        else:
            assert isinstance(result, Unexaminable)
            assert result.code is ErrorCode.NOT_AN_IMAGE
            assert body.startswith(b"<!doctype")


async def test_a_caller_that_gives_up_disturbs_nobody() -> None:
    async with running() as pool:
        tasks = [asyncio.create_task(decoded(pool, photo(seed))) for seed in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Decoded) for result in results[1::2])


@pytest.mark.parametrize("progressive", [False, True])
async def test_30_megapixels_are_decoded_within_the_default_limits(progressive: bool) -> None:
    async with running(timeout_seconds=60) as pool:
        assert (await decoded(pool, huge_jpeg(progressive))).facts.width == 6500


async def test_a_turned_photo_of_48_megapixels_with_a_profile_fits_the_memory() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (8064, 6048), "teal")
    image.save(buffer, "JPEG", icc_profile=display_p3(), exif=oriented(6))
    async with running(timeout_seconds=60) as pool:
        assert (await decoded(pool, buffer.getvalue())).facts.width == 6048


async def test_the_limit_of_pixels_holds() -> None:
    async with running(max_pixels=10_000) as pool:
        assert (await rejection(pool, photo())).code is ErrorCode.TOO_MANY_PIXELS


# ---------------------------------------------------------------- hang, memory, crash


async def test_only_the_image_that_hangs_is_rejected_and_the_pool_goes_on() -> None:
    before = kills("timeout")
    async with running(timeout_seconds=2, **ENDLESS) as pool:
        hang = asyncio.create_task(rejection(pool, endless_gif()))
        others = [asyncio.create_task(decoded(pool, photo(seed))) for seed in range(15)]
        assert (await hang).code is ErrorCode.DECODE_TIMEOUT
        assert len(await asyncio.gather(*others)) == 15
        assert (await decoded(pool, photo())).facts.width == 120
    assert kills("timeout") == before + 1


async def test_only_the_image_that_needs_too_much_memory_is_rejected_and_the_pool_goes_on() -> None:
    before = kills("memory")
    async with running(memory_bytes=64 * 2**20, timeout_seconds=60) as pool:
        bodies = [photo(0), huge_jpeg(), photo(1), photo(2)]
        results = await asyncio.gather(
            *(decoded(pool, body) for body in bodies), return_exceptions=True
        )
    error = results.pop(1)
    assert isinstance(error, Unexaminable)
    assert error.code is ErrorCode.DECODE_MEMORY
    assert "64 MiB" in error.detail
    assert all(isinstance(result, Decoded) for result in results)
    assert kills("memory") == before + 2  # the second time alone, in a new process


async def test_an_image_whose_process_crashes_twice_is_rejected_and_the_pool_goes_on() -> None:
    before = kills("crashed")
    async with running(timeout_seconds=60, **ENDLESS) as pool:
        crash = asyncio.create_task(rejection(pool, endless_gif()))
        for _ in range(2):
            await until(lambda: any(map(is_busy, children())))
            (child,) = children()
            child.send_signal(signal.SIGSEGV)
            await until(lambda child=child: is_gone(child.pid))
        error = await crash
        assert error.code is ErrorCode.DECODE_CRASHED
        assert "signal 11" in error.detail
        assert (await decoded(pool, photo())).facts.width == 120
    assert kills("crashed") == before + 2


async def test_an_idle_process_that_is_killed_costs_no_image() -> None:
    async with running() as pool:
        await decoded(pool, photo())
        (child,) = children()
        child.kill()
        assert (await decoded(pool, photo())).facts.width == 120
        assert child.pid not in {other.pid for other in children()}


# ---------------------------------------------------------------- living and dying


async def test_the_children_leave_signals_to_their_parent() -> None:
    async with running() as pool:
        (child,) = children()
        child.send_signal(signal.SIGINT)
        child.terminate()
        await decoded(pool, photo())
        assert children() == [child]
        assert os.getpgid(child.pid) != os.getpgrp()  # Ctrl-C goes to the group of the terminal


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_children_have_no_torch_even_where_the_parent_has() -> None:
    import torch  # noqa: F401

    async with running() as pool:
        await decoded(pool, photo())
        (child,) = children()
        assert "torch" not in mapped_into(child)
        assert child.num_threads() == 1


async def test_closing_ends_children_in_mid_image_and_tells_those_who_wait() -> None:
    async with running(processes=2, timeout_seconds=60, **ENDLESS) as pool:
        tasks = []
        for busy in (1, 2):
            tasks.append(asyncio.create_task(decoded(pool, endless_gif())))
            await until(lambda busy=busy: sum(map(is_busy, children())) == busy)
        tasks.append(asyncio.create_task(decoded(pool, photo())))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):  # less than the images would take
            await pool.close()
        assert not children()
        for task in tasks:
            with pytest.raises(RuntimeError, match="closed"):
                await task


async def test_a_closed_pool_says_so() -> None:
    async with running() as pool:
        pass
    await pool.close()
    with pytest.raises(RuntimeError, match="stopped"):
        await decoded(pool, photo())


PARENT = """
import asyncio, sys
from tests.decoding import children, decoded, running, until
from tests.unit.test_decode import ENDLESS, endless_gif, is_busy

async def main():
    async with running(timeout_seconds=600, **ENDLESS) as pool:
        task = asyncio.create_task(decoded(pool, endless_gif()))
        await until(lambda: any(map(is_busy, children())))
        print(*(child.pid for child in children()), flush=True)
        await task

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the image in hand is finished first")
async def test_children_die_with_a_parent_that_is_killed_while_they_decode() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pids = list(map(int, (await parent.stdout.readline()).split()))
    finally:
        parent.kill()
        await parent.wait()
    assert pids
    await until(lambda: all(map(is_gone, pids)), seconds=20)  # less than the image would take


async def test_a_pool_whose_children_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="status 1 before it was ready"):
        async with running(processes=2):
            pass


async def test_a_child_that_cannot_be_replaced_stops_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as pool:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        for child in children():
            child.kill()
        with pytest.raises(RuntimeError, match="status 1 before it was ready"):
            await decoded(pool, photo())
        with pytest.raises(RuntimeError, match="stopped"):
            await decoded(pool, photo())
