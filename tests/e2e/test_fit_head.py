"""``imagewarden policy fit-head`` from a CSV of photos to a policy that judges others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.scene import command, write_policy
from tests.policy_factory import category
from worker.demo.photos import photos

CROPS = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy that knows nothing of cats, and crops of a photo of one and of others, labelled."""
    write_policy(tmp_path / "policy.yaml", category(), model="pocket")
    random = np.random.default_rng(5)
    rows = [("path", "label")]
    for name in ("chelsea", "coffee", "rocket"):
        photo = np.asarray(photos()[name])
        for number in range(CROPS):
            side = int(random.integers(120, 280))
            top, left = (int(random.integers(0, length - side)) for length in photo.shape[:2])
            file = f"{name}-{number}.jpg"
            Image.fromarray(photo[top : top + side, left : left + side]).save(tmp_path / file)
            rows.append((file, "cat" if name == "chelsea" else "other"))
    rows.append(("absent.jpg", "other"))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def test_category_learned_from_photos_judges_photos_on_trial(folder: Path) -> None:
    policy = str(folder / "policy.yaml")
    fitted = command(
        *("policy", "fit-head", policy, "animal.cat", "--no-cache"),
        *("--labels", str(folder / "labels.csv")),
    )
    assert fitted.returncode == 0, fitted.stderr
    assert "left out absent.jpg" in fitted.stderr
    assert (folder / "heads" / "cat.json").is_file()
    for name in ("chelsea", "flower"):
        Image.fromarray(np.asarray(photos()[name])).save(folder / f"{name}.png")
    judged = command(
        "scan", "--policy", policy, str(folder / "chelsea.png"), str(folder / "flower.png")
    )
    cat, flower = (json.loads(line)["shadow"][0] for line in judged.stdout.splitlines())
    assert (cat["id"], cat["action"], cat["calibrated"]) == ("animal.cat", "review", True)
    assert flower["action"] == "allow"
