"""``imagewarden scan``, with the model that comes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.scene import command, write_policy
from tests.policy_factory import category
from worker.demo.image_server import Reply, serving
from worker.demo.photos import jpeg, photos
from worker.schema import Verdict

CATS = category(
    "cat", prompts=["a cat"], contrast=["a flower", "a cup of coffee", "a building", "a rocket"]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The cat, the flower, and a folder of two more that hides among other files."""
    write_policy(tmp_path / "policy.yaml", CATS, model="pocket")
    taken = photos()
    inner = tmp_path / "album" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "album" / "notes.txt").write_text("no image")
    for path, name in {
        tmp_path / "cat.jpg": "chelsea",
        tmp_path / "flower.jpg": "flower",
        tmp_path / "album" / "coffee.jpg": "coffee",
        inner / "china.JPG": "china",
    }.items():
        path.write_bytes(jpeg(taken[name]))
    return tmp_path


def test_everything_named_gets_a_json_line_in_the_order_it_was_named(folder: Path) -> None:
    (folder / "page.jpg").write_text("<!doctype html>")
    photo = (folder / "flower.jpg").read_bytes()
    with serving({"/flower.jpg": Reply(photo)}) as images:
        done = command(
            *("scan", "--policy", f"{folder}/policy.yaml"),  # in a pipe: JSON lines
            *("--allow", f"127.0.0.1:{images.port}", f"{folder}/album", f"{folder}/cat.jpg"),
            *(images.url("/flower.jpg?token=SECRET"), images.url("/gone.jpg"), "-"),
            stdin=f"{folder}/flower.jpg\n\n{folder}/page.jpg\n",
        )
    assert done.stderr == ""
    verdicts = [Verdict.model_validate_json(line) for line in done.stdout.splitlines()]
    assert [(verdict.item_id, verdict.decision) for verdict in verdicts] == [
        (f"{folder}/album/coffee.jpg", "allow"),
        (f"{folder}/album/inner/china.JPG", "allow"),
        (f"{folder}/cat.jpg", "review"),
        (images.url("/flower.jpg"), "allow"),
        (images.url("/gone.jpg"), "undetermined"),
        (f"{folder}/flower.jpg", "allow"),
        (f"{folder}/page.jpg", "undetermined"),
    ]
    assert "SECRET" not in done.stdout
    assert done.returncode == 3


def test_the_table_shows_each_image_and_what_decided(folder: Path) -> None:
    named = ["cat.jpg", "flower.jpg"]
    done = command(
        *("scan", "--policy", f"{folder}/policy.yaml", "--format", "table"),
        *(str(folder / name) for name in named),
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "decision" in done.stdout
    assert "a cat" in done.stdout
    assert "review" in done.stdout


def test_what_does_not_exist_is_told_and_nothing_is_judged(folder: Path) -> None:
    named = [f"{folder}/cat.jpg", f"{folder}/nowhere.jpg"]
    done = command("scan", "--policy", f"{folder}/policy.yaml", *named)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"imagewarden: {folder}/nowhere.jpg is no file, no folder and no URL\n"


def test_a_folder_without_images_is_told(folder: Path) -> None:
    (folder / "empty").mkdir()
    done = command("scan", "--policy", f"{folder}/policy.yaml", f"{folder}/empty")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no image" in done.stderr
