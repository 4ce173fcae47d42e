"""The labelled set that everybody can make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from worker.demo.album import write_album
from worker.demo.photos import photos
from worker.errors import Misconfigured


def test_there_is_a_folder_of_unlike_cuts_for_each_photo(tmp_path: Path) -> None:
    count = write_album(tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == photos().keys()
    files = list(tmp_path.glob("*/*.jpg"))
    assert len(files) == len({file.read_bytes() for file in files}) == count == 120
    for file in files:
        with Image.open(file) as image:
            assert max(image.size) <= 320


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_album(tmp_path / name)
    one, two = (
        [file.read_bytes() for file in sorted((tmp_path / name).glob("*/*.jpg"))]
        for name in ("one", "two")
    )
    assert one == two


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="cannot be written"):
        write_album(tmp_path / "file")


def test_it_asks_for_a_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.demo.album"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "usage: python -m worker.demo.album FOLDER\n"
