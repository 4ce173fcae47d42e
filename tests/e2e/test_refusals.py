"""What is wrong is told in a sentence, before anything connects."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import command, write_policy
from tests.policy_factory import category


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where the broker and Redis should be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_policy(tmp_path / "good.yaml")
    write_policy(tmp_path / "broken.yaml", category(reveiw=0.5))
    (tmp_path / "settings.toml").write_text("[kafka]\nbootsrap = 'localhost:9092'\n")
    (tmp_path / "broken.toml").write_text("[kafka\n")
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WORK__IN_FLIGHT", "0", "IMAGEWARDEN_WORK__IN_FLIGHT"),
        ("FETCH__MAX_BYTES", "20 MB", "IMAGEWARDEN_FETCH__MAX_BYTES"),
        ("FETCH__ALLOW", "localhost:80", "IMAGEWARDEN_FETCH__ALLOW"),
        ("REDIS__URL", "http://localhost", "IMAGEWARDEN_REDIS__URL"),
        ("REDIS__URL", "redis://:pass/word@localhost", "IMAGEWARDEN_REDIS__URL"),
        ("CACHE__URL_KEY", "short", "IMAGEWARDEN_CACHE__URL_KEY"),
        ("KAFKA__BOOTSRAP", "x:1", "did you mean IMAGEWARDEN_KAFKA__BOOTSTRAP"),
        ("CONFIG", "{folder}/nowhere.toml", "nowhere.toml"),
        ("CONFIG", "{folder}/broken.toml", "broken.toml"),
        ("CONFIG", "{folder}/settings.toml", "kafka.bootsrap"),
        ("POLICIES", "{folder}/nowhere.yaml", "nowhere.yaml"),
        ("POLICIES", "{folder}/broken.yaml", "broken.yaml:1:"),
        ("HTTP__PORT", "{taken}", "IMAGEWARDEN_HTTP__PORT"),
    ],
)
def test_a_wrong_setting_ends_it_with_a_sentence_before_anything_connects(
    folder: Path, listener: socket.socket, variable: str, value: str, told: str
) -> None:
    host, port = listener.getsockname()
    settings = {
        "KAFKA__BOOTSTRAP": f"{host}:{port}",
        "REDIS__URL": f"redis://{host}:{port}/0",
        "POLICIES": str(folder / "good.yaml"),
        "HTTP__PORT": "0",
        variable: value.format(folder=folder, taken=port),
    }
    done = command("run", settings=settings)
    assert done.returncode == 2
    assert done.stdout == ""
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("imagewarden: ")
    assert told in sentence
    assert "pass/word" not in sentence
    with pytest.raises(BlockingIOError):
        listener.accept()
