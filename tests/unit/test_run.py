"""What each of several workers has for itself alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from worker.commands.run import environment
from worker.settings import Settings
from worker.settings_load import load_settings


def of(number: int, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the worker of that number reads."""
    with monkeypatch.context() as child:
        for name, value in environment(settings, number, 2, Path("/tmp/of-its-own")).items():
            child.setenv(name, value)
        return load_settings()


def test_each_has_its_name_and_its_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        {"worker": "a", "delivery": "exactly_once", "kafka": {"transactional_id": "t"}}
    )
    each = [of(number, settings, monkeypatch) for number in (0, 1, 0)]
    assert [one.worker for one in each] == ["a-0", "a-1", "a-0"]
    assert [one.kafka.transactional_id for one in each] == ["t-0", "t-1", "t-0"]
    assert [one.http.host for one in each] == [f"unix:/tmp/of-its-own/{n}.sock" for n in (0, 1, 0)]
    assert all(one.log.worker for one in each)


def test_transactions_are_named_after_the_worker_where_they_have_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert of(1, load_settings({"worker": "a"}), monkeypatch).kafka.transactional_id is None


def test_name_in_small_letters_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("imagewarden_worker", "a")
    assert of(1, load_settings(), monkeypatch).worker == "a-1"


def test_cores_are_shared_unless_someone_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment(settings, 0, 10_000, Path())["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environment(settings, 0, 10_000, Path())["OMP_NUM_THREADS"] == "7"


def test_supervisor_pays_for_no_model() -> None:
    code = (
        "import worker.cli, worker.commands.run, sys; "
        "sys.exit(bool({'torch', 'kafka', 'open_clip'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=120)
    assert run.returncode == 0
