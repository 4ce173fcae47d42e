"""What is said of peers: their steady part, ratios by round, and why one has no figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.peers.comparison import compare
from tests.bench.peers.contenders import Contender
from tests.bench.peers.environments import Unavailable, python_of
from tests.bench.peers.turns import Turn, turn

INSIDE = Path(__file__).resolve().parents[1] / "bench" / "peers" / "inside"
RATES = st.lists(st.tuples(*[st.floats(1, 1000)] * 2), min_size=1, max_size=5)


def peer(folder: Path, script: str) -> list[str]:
    """The command of a peer that does what the script says."""
    file = folder / "peer.py"
    head = f"import sys; sys.path.append({str(INSIDE)!r})\nfrom progress import done, versions\n"
    file.write_text(head + script)
    return [sys.executable, str(file)]


def contender(name: str, rates: Iterator[float], *, ours: bool = False) -> Contender:
    def once(images: int) -> Turn:
        return Turn({"images/s": next(rates)}, {"torch": "2.15"})

    return Contender(name, once, "end-to-end" if ours else f"peer: {name}", ours=ours)


def broken(name: str, asked: list[str]) -> Contender:
    def once(images: int) -> Turn:
        asked.append(name)
        raise Unavailable("not installed: no such wheel")

    return Contender(name, once, f"peer: {name}")


def test_a_peer_is_measured_by_what_it_tells_and_not_by_what_it_prints(tmp_path: Path) -> None:
    found = turn(
        peer(tmp_path, "versions('numpy')\nprint('loaded')\nfor _ in range(10): done(2)"), 20
    )
    assert found.versions.keys() == {"numpy", "torch", "pillow"}
    assert found.figures.keys() == {"images/s", "core-ms/image", "MiB resident"}
    assert found.figures["images/s"] > 0


def test_a_peer_that_does_not_run_is_told_of_in_its_own_last_words(tmp_path: Path) -> None:
    command = peer(tmp_path, "done(1)\nraise ImportError('aiohttp is not available')")
    with pytest.raises(Unavailable, match="does not run: ImportError: aiohttp is not available"):
        turn(command, 10)


def test_a_peer_that_does_fewer_images_than_it_was_given_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not run"):
        turn(peer(tmp_path, "for _ in range(19): done(1)"), 20)


def test_what_a_peer_started_ends_with_it(tmp_path: Path) -> None:
    script = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "for _ in range(10): done(1)"
    )
    turn(peer(tmp_path, script), 10)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while runs(child):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_cannot_be_installed_is_told_of_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="not installed: "):
        python_of("nothing", [str(tmp_path / "no-such-package")])


def test_a_peer_that_fails_is_named_with_its_reason_and_not_asked_again() -> None:
    asked: list[str] = []
    results = compare(
        [broken("a", asked), contender("b", iter([2.0, 3.0])), broken("c", asked)], 2, 10
    )
    assert asked == ["a", "c"]
    assert [result.failed for result in results] == [
        "not installed: no such wheel",
        None,
        "not installed: no such wheel",
    ]
    assert results[1].figures["images/s"].rounds == (2.0, 3.0)


@given(RATES)
def test_ratios_are_those_within_a_round(rates: list[tuple[float, float]]) -> None:
    theirs, ours = ([pair[side] for pair in rates] for side in (0, 1))
    contenders = [
        contender("plain loop", iter(theirs)),
        contender("imagewarden", iter(ours), ours=True),
    ]
    peers, own = compare(contenders, len(rates), 10)
    assert not any(name.startswith("times") for name in peers.figures)
    assert own.figures["times the plain loop"].rounds == tuple(b / a for a, b in rates)
    assert own.wanted == {"times the plain loop": "≥ 1.5"}


def test_there_is_no_ratio_to_a_peer_that_failed() -> None:
    contenders = [broken("infinity", []), contender("imagewarden", iter([2.0]), ours=True)]
    _, own = compare(contenders, 1, 10)
    assert own.figures.keys() == {"images/s"}
    assert not own.wanted
