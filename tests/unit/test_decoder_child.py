"""A decoder process that a stranger's bytes have taken over: what it can do, and to whom.

The processes are real and confined as in service, but run what follows ``exploit:`` in a body.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from worker import imaging
from worker.decoder_child import read_header
from worker.decoder_process import Task
from worker.errors import ErrorCode, Unexaminable
from worker.image_formats import FORMATS
from worker.types import Decoded, ImageFacts

TAKEN_OVER = """#!{python}
import errno, json, os, resource, signal, socket, sys, time
sys.path[:] = {path!r}
from worker import decoder_process
from worker.decoder_process import HEADER_LENGTH

honest = decoder_process._answer

def answer(parent, task, allowance):
    def tell(what):
        rejection = {{"code": "undecodable", "detail": str(what)}}
        decoder_process._say(parent, json.dumps(rejection).encode())

    exploit = task.body.partition(b"exploit:")[2]
    if exploit:
        exec(exploit, {{**globals(), **locals()}})
    else:
        honest(parent, task, allowance)

decoder_process._answer = answer
sys.argv = [sys.argv[0], sys.argv[-1]]
decoder_process.main()
"""


@pytest.fixture
def taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder processes do what a body tells them."""
    script = tmp_path / "decoder_process"
    script.write_text(TAKEN_OVER.format(python=sys.executable, path=sys.path))
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def exploit(code: str) -> bytes:
    return b"exploit:" + code.encode()


async def told(code: str) -> str:
    """What a decoder process says after running ``code``, which calls ``tell``."""
    async with running() as pool:
        error = await rejection(pool, exploit(code))
    assert error.code is ErrorCode.UNDECODABLE, error
    return error.detail


async def outcome_among_others(code: str, **options: Any) -> Unexaminable:
    """The outcome of one such body in the middle of a group; the others must be decoded."""
    bodies = [photo(seed) for seed in range(6)]
    bodies[2] = exploit(code)
    async with running(**options) as pool:
        outcomes = await asyncio.gather(
            *(decoded(pool, body) for body in bodies), return_exceptions=True
        )
        assert (await decoded(pool, photo())).facts.width == 120
    suspect = outcomes.pop(2)
    assert all(isinstance(outcome, Decoded) for outcome in outcomes), outcomes
    assert isinstance(suspect, Unexaminable)
    return suspect


# ---------------------------------------------------------------- what it answers


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize(
    "code",
    [
        "parent.sendall(b'\\xff' * 4)",
        "parent.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n' * 1000)",
        "decoder_process._say(parent, b'')",
        "decoder_process._say(parent, b'\\0\\xff\\0')",
        "decoder_process._say(parent, b'[' * 60_000)",
        "decoder_process._say(parent, b'9' * 60_000)",
        'decoder_process._say(parent, b\'{"code": "no_such_code", "detail": ""}\')',
        "decoder_process._say(parent, b'{\"rows\": [0]}')",
    ],
    ids=["endless", "text", "empty", "binary", "nested", "a number", "code", "fields missing"],
)
async def test_nonsense_costs_only_the_image_it_was_said_of(code: str) -> None:
    before = kills("garbage")
    error = await outcome_among_others(code)
    assert error.code is ErrorCode.DECODE_CRASHED
    assert "nonsense" in error.detail
    assert kills("garbage") == before + 2  # the second time alone, in a new process


@pytest.mark.usefixtures("taken_over")
async def test_what_is_told_to_people_is_of_limited_length() -> None:
    assert len(await told("tell('a' * 50_000)")) == 500


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("piece", [1, 7, 1000, 100_000])
async def test_an_answer_is_read_in_whatever_pieces_it_comes(piece: int) -> None:
    code = f"""
class Pieces:
    def sendmsg(self, parts):
        said = b"".join(parts)
        for start in range(0, len(said), {piece}):
            parent.sendall(said[start : start + {piece}])
        return len(said)

honest(Pieces(), task, allowance)
"""
    body = photo() + exploit(code)
    async with running() as pool:
        there = await decoded(pool, body)
        assert (await decoded(pool, photo())).facts.width == 120
    assert np.array_equal(there.pixels, imaging.decode(body, "", SPEC, PLAN, LIMITS).pixels)


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("sent", [0, 3, 200, 5000])
async def test_an_answer_that_was_interrupted_is_finished(sent: int) -> None:
    code = f"""
class Interrupted:
    sendall = parent.sendall
    def sendmsg(self, parts):
        parent.sendall(b"".join(parts)[:{sent}])
        return {sent}

honest(Interrupted(), task, allowance)
"""
    async with running() as pool:
        assert (await decoded(pool, photo() + exploit(code))).facts.width == 120
        assert (await decoded(pool, photo())).facts.width == 120


TASK = Task(b"four", "5a" * 32, SPEC, PLAN)
HONEST = {
    "sha256": TASK.sha256,
    "perceptual_hash": "0123456789abcdef" * 4,
    "media_type": "image/gif",
    "width": 40,
    "height": 30,
    "bytes": 4,
    "frames": 12,
    "rows": [0, 4, 11],
}


def read(fields: Mapping[str, object]) -> object:
    return read_header(json.dumps(fields).encode(), TASK, max_pixels=1200)


def test_honest_facts_are_read_as_they_are() -> None:
    facts = read(HONEST)
    assert {name: getattr(facts, name) for name in HONEST} == {**HONEST, "rows": (0, 4, 11)}


def test_image_may_have_no_perceptual_hash() -> None:
    facts = read({**HONEST, "perceptual_hash": None})
    assert isinstance(facts, ImageFacts)
    assert facts.perceptual_hash is None


@pytest.mark.parametrize(
    "lie",
    [
        {"sha256": "00" * 32},
        {"bytes": 5},
        {"perceptual_hash": "0123456789ABCDEF" * 4},
        {"perceptual_hash": "0123456789abcdef" * 4 + "\n"},
        {"perceptual_hash": "0123456789abcdef"},
        {"perceptual_hash": ""},
        {"media_type": "text/html"},
        {"width": 0},
        {"width": -40, "height": -30},
        {"width": 41},
        {"width": "40"},
        {"width": 40.5},
        {"width": True},
        {"frames": 11},
        {"frames": 0},
        {"rows": []},
        {"rows": [0] * (PLAN.max_frames * PLAN.max_tiles + 1)},
        {"rows": [0, 12]},
        {"rows": [4, 11]},
        {"rows": [0, 11, 4]},
        {"rows": [-1, 0]},
        {"rows": None},
    ],
    ids=str,
)
def test_facts_that_cannot_be_the_images_are_not_believed(lie: Mapping[str, object]) -> None:
    with pytest.raises(ValueError):
        read({**HONEST, **lie})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*HONEST, "code"]), inner),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_header_raises_anything_but_value_error(header: bytes) -> None:
    with pytest.raises(ValueError):
        read_header(header, TASK, max_pixels=1200)


@given(st.fixed_dictionaries({name: st.just(HONEST[name]) | st.integers() for name in HONEST}))
def test_facts_with_any_integers_are_believed_only_if_they_fit(fields: dict[str, object]) -> None:
    try:
        facts = read(fields)
    except ValueError:
        return
    assert isinstance(facts, ImageFacts)
    assert 0 < facts.width * facts.height <= 1200
    assert facts.frames > 11


# ---------------------------------------------------------------- how long it takes


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize(
    "code",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "parent.sendall(b'\\0'); os.kill(os.getpid(), signal.SIGSTOP)",
        "parent.sendall(HEADER_LENGTH.pack(900) + b'{'); os.kill(os.getpid(), signal.SIGSTOP)",
        "parent.sendall(HEADER_LENGTH.pack(900))\nwhile True: parent.sendall(b' '); time.sleep(.1)",
        "while True: pass",
    ],
    ids=["stopped", "stopped in a length", "stopped in a header", "drips", "spins"],
)
async def test_silence_costs_only_the_image_it_was_kept_over(code: str) -> None:
    before = kills("timeout")
    error = await outcome_among_others(code, timeout_seconds=2)
    assert error.code is ErrorCode.DECODE_TIMEOUT
    assert kills("timeout") == before + 1


@pytest.mark.usefixtures("taken_over")
async def test_a_process_stopped_in_its_pixels_is_too_slow() -> None:
    code = (
        f"facts = {HONEST} | {{'bytes': len(task.body), 'sha256': task.sha256}}\n"
        "decoder_process._say(parent, json.dumps(facts).encode())\n"
        "parent.sendall(bytes(100))\n"
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    error = await outcome_among_others(code, timeout_seconds=2)
    assert error.code is ErrorCode.DECODE_TIMEOUT


async def test_an_idle_process_that_is_stopped_costs_no_image_it_has_not_taken() -> None:
    async with running(timeout_seconds=2) as pool:
        await decoded(pool, photo())
        (child,) = children()
        child.suspend()
        large = photo() + bytes(4 * 2**20)  # more than a socket holds
        assert (await decoded(pool, large)).facts.width == 120
        assert child.pid not in {other.pid for other in children()}


@pytest.mark.usefixtures("taken_over")
async def test_a_process_that_used_up_its_cpu_time_was_too_slow() -> None:
    code = (
        "used = int(time.process_time())\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (used + 1, used + 2))\n"
        "while True: pass"
    )
    error = await outcome_among_others(code, timeout_seconds=60)
    assert error.code is ErrorCode.DECODE_TIMEOUT


@pytest.mark.usefixtures("taken_over")
async def test_cpu_time_is_limited_to_little_more_than_the_time_for_an_image() -> None:
    code = "tell(resource.getrlimit(resource.RLIMIT_CPU)[0] - time.process_time())"
    assert 5.0 <= float(await told(code)) <= 8.0


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS"])
async def test_an_end_by_a_signal_costs_only_the_image_it_came_over(how: str) -> None:
    error = await outcome_among_others(f"os.kill(os.getpid(), signal.{how})")
    assert error.code is ErrorCode.DECODE_CRASHED


@pytest.mark.usefixtures("taken_over")
async def test_an_exception_costs_only_the_image_it_came_over() -> None:
    error = await outcome_among_others("raise ValueError('a bug')")
    assert error.code is ErrorCode.DECODE_CRASHED
    assert "status 1" in error.detail


@pytest.mark.usefixtures("taken_over")
async def test_a_process_that_hangs_up_and_lives_on_is_ended() -> None:
    error = await outcome_among_others("parent.shutdown(socket.SHUT_RDWR); time.sleep(600)")
    assert error.code is ErrorCode.DECODE_CRASHED


# ---------------------------------------------------------------- what it can reach


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/hostname')",
        "open('/tmp/decoder', 'w')",
        "socket.socket()",
        "socket.socketpair()",
        "os.pipe()",
        "os.memfd_create('code')",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
async def test_no_file_and_no_connection_can_be_opened(attempt: str) -> None:
    code = f"try: tell({attempt})\nexcept OSError as error: tell(errno.errorcode[error.errno])"
    assert await told(code) == "EMFILE"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_it_holds_its_socket_and_nothing_of_the_parents() -> None:
    inheritable = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    try:
        async with running(processes=2) as pool:
            await asyncio.gather(*(decoded(pool, photo(seed)) for seed in range(4)))
            for child in children():
                fd = f"/proc/{child.pid}/fd"
                open_ = {os.readlink(f"{fd}/{name}") for name in os.listdir(fd)}
                sockets = {name for name in open_ if name.startswith("socket:")}
                stderr = os.readlink("/proc/self/fd/2")
                assert len(sockets - {stderr}) == 1
                assert open_ - sockets <= {"/dev/null", stderr}
    finally:
        os.close(inheritable)


async def test_the_environment_of_the_parent_stays_with_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGEWARDEN_KAFKA__PASSWORD", "planted")
    async with running():
        (child,) = children()
        assert "planted" not in str(child.environ())


@pytest.mark.usefixtures("taken_over")
@pytest.mark.skipif(os.geteuid() != 0, reason="only a process of root's can still start others")
async def test_what_a_process_has_started_ends_with_it() -> None:
    code = "tell(os.fork() or time.sleep(600))"
    async with running() as pool:
        grandchild = int((await rejection(pool, exploit(code))).detail)
        assert not is_gone(grandchild)
    await until(lambda: is_gone(grandchild))


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("limit", ["RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_NPROC"])
async def test_limits_are_nothing_the_hard_ones_too(limit: str) -> None:
    if limit == "RLIMIT_NPROC" and "HEIF" in FORMATS:
        pytest.skip("HEIC is decoded in a thread")
    assert await told(f"tell(resource.getrlimit(resource.{limit}))") == "(0, 0)"
