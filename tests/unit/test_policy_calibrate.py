"""``imagewarden policy calibrate`` on real files, with an encoder that sees colours."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, policy_bytes
from tests.unit.http_server import Server, response
from worker.authoring.policy_file import PolicyFile
from worker.commands.labelled import LabelOptions
from worker.commands.policy_calibrate import CalibrateOptions, calibrate_by_labels
from worker.commands.render import Exit
from worker.errors import Misconfigured
from worker.policy_yaml import InvalidPolicy, load_policy
from worker.settings import Settings
from worker.settings_load import load_settings

EACH = 30
RED = category("colour.red", block=0.9)
GREEN = category("colour.green", prompts=["green"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imagewarden" / "embeddings.sqlite"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_bytes(policy_bytes(RED, GREEN))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Images that are rather red, green or blue, and labelled so, with one in ten mistaken."""
    random = np.random.default_rng(8)
    rows = []
    for index, name in enumerate(("red", "green", "blue")):
        for number in range(EACH):
            colour = random.normal(90, 50, 3)
            colour[index] += 70
            # a little texture, so that none is another's near-duplicate
            pixels = colour + random.normal(0, 40, (64, 64, 3))
            path = f"{name}-{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / path)
            rows.append((path, "blue" if name == "red" and number % 10 == 0 else name))
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


class Loads:
    """Gives the same encoder to whoever loads one."""

    def __init__(self) -> None:
        self.encoder = FakeEncoder()
        self.times = 0

    def __call__(self, settings: Settings) -> FakeEncoder:
        self.times += 1
        return self.encoder


@pytest.fixture
def load() -> Loads:
    return Loads()


@pytest.fixture
def calibrated(policy: Path, labels: Path, load: Loads) -> Callable[..., Exit]:
    def run(
        *,
        path: Path = policy,
        given: Path = labels,
        meanings: tuple[str, ...] = (),
        **options: object,
    ) -> Exit:
        settings = load_settings({"policies": (str(path),), "decode": {"processes": 1}})
        chosen = CalibrateOptions(**options)  # type: ignore[arg-type]
        return calibrate_by_labels(settings, path, LabelOptions(given, meanings), chosen, load=load)

    return run


def test_a_policy_is_calibrated_and_the_figures_are_printed(
    calibrated: Callable[..., Exit], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated() is Exit.ALL_ALLOWED
    assert compiled_of(load_policy(policy), FakeEncoder()).uncalibrated == ()
    said = capsys.readouterr()
    assert "colour.red" in said.out and "27 + 63" in said.out
    assert "block 0.9: FPR" in said.out
    assert "nobody said where all images that show it come from" in said.err
    assert "these labels count as showing no category: blue" in said.err


def test_on_a_narrow_terminal_names_and_thresholds_are_still_there(
    calibrated: Callable[..., Exit],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "56")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    calibrated(dry_run=True)
    said = capsys.readouterr().out
    assert "colour" in said and "recall" in said
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines())) <= 56


def test_a_dry_run_prints_and_writes_nothing(
    calibrated: Callable[..., Exit], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = policy.read_bytes()
    assert calibrated(dry_run=True) is Exit.ALL_ALLOWED
    assert policy.read_bytes() == before
    assert "27 + 63" in capsys.readouterr().out


def test_targets_without_values_are_solved(
    calibrated: Callable[..., Exit], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = category("colour.red", review={"target": {"recall": 0.5}})
    policy.write_bytes(policy_bytes(wanted))
    with pytest.raises(InvalidPolicy, match="has a `target` and no `value`"):
        load_policy(policy)
    assert calibrated() is Exit.ALL_ALLOWED
    assert load_policy(policy).categories[0].thresholds.review is not None
    assert "for recall 50" in capsys.readouterr().out


def test_a_category_that_is_left_as_it_was_shows_in_the_exit_code(
    calibrated: Callable[..., Exit], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = category("colour.red", block={"target": {"fpr": 0.001}, "value": 0.9})
    policy.write_bytes(policy_bytes(wanted, GREEN))
    assert calibrated() is Exit.NOT_ALL_ALLOWED
    red, green = json.loads(policy.read_text())["categories"]
    assert red == wanted
    assert "calibration" in green
    said = " ".join(capsys.readouterr().out.split())
    assert "63 negatives cannot show an FPR" in said
    assert "at least 2,995 are needed" in said


def test_a_category_that_no_image_shows_is_left_alone_without_complaint(
    calibrated: Callable[..., Exit], policy: Path
) -> None:
    policy.write_bytes(policy_bytes(RED, category("other", prompts=["a dog"])))
    assert calibrated() is Exit.ALL_ALLOWED
    assert "calibration" not in json.loads(policy.read_text())["categories"][1]


def test_images_that_cannot_be_examined_are_left_out_and_named(
    calibrated: Callable[..., Exit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red-1.png").write_bytes(b"<html>")
    (tmp_path / "red-2.png").unlink()
    assert calibrated() is Exit.ALL_ALLOWED
    said = capsys.readouterr()
    assert "25 + 63" in said.out
    assert f"left out red-1.png: {tmp_path}/labels.csv:3: " in said.err
    assert f"left out red-2.png: {tmp_path}/labels.csv:4: it cannot be read: No such" in said.err


def test_a_category_whose_images_are_all_left_out_shows_in_the_exit_code(
    calibrated: Callable[..., Exit], tmp_path: Path
) -> None:
    for number in range(EACH):
        (tmp_path / f"green-{number}.png").unlink()
    assert calibrated() is Exit.NOT_ALL_ALLOWED


def by_url(labels: Path, server: Server) -> Path:
    """The same labels of the same images, which ``server`` serves."""
    rows = ["url,label"]
    for line in labels.read_text().splitlines()[1:]:
        path, label = line.split(",")
        url = server.answer(f"/{path}", response((labels.parent / path).read_bytes()))
        rows.append(f"{url}?sig=secret,{label}")
    found = labels.parent / "urls.csv"
    found.write_text("\n".join(rows))
    return found


async def test_images_are_downloaded_by_the_rules_of_the_settings(
    policy: Path, labels: Path, load: Loads, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    await server.start()
    options = LabelOptions(by_url(labels, server), cache=False)

    def run(allow: tuple[str, ...]) -> Exit:
        fetch = {"allow": allow, "ports": (server.port,)}
        settings = load_settings({"fetch": fetch, "decode": {"processes": 1}})
        return calibrate_by_labels(settings, policy, options, CalibrateOptions(), load=load)

    with pytest.raises(Misconfigured, match=r"90 of the 90 .*") as refused:
        await asyncio.to_thread(run, ())
    assert "secret" not in str(refused.value) + capsys.readouterr().err
    assert await asyncio.to_thread(run, (f"127.0.0.1:{server.port}",)) is Exit.ALL_ALLOWED
    assert "secret" not in capsys.readouterr().err
    await server.close()


def test_embeddings_are_kept_on_disk_for_the_next_time(
    calibrated: Callable[..., Exit], cache: Path, load: Loads
) -> None:
    calibrated(dry_run=True)
    assert cache.exists()
    embedded = sum(load.encoder.images)
    calibrated(dry_run=True)
    assert sum(load.encoder.images) == embedded


def test_a_report_is_written_where_it_is_wanted(
    calibrated: Callable[..., Exit], tmp_path: Path
) -> None:
    calibrated(report=tmp_path / "report.html", dry_run=True)
    page = (tmp_path / "report.html").read_text()
    assert "colour.red" in page and "data:image/jpeg;base64," in page


def test_a_prevalence_of_one_category_is_kept_when_another_is_stated(
    calibrated: Callable[..., Exit], policy: Path
) -> None:
    calibrated(prevalence=("colour.red=0.01",))
    calibrated(prevalence=("colour.green=0.2",))
    written = json.loads(policy.read_text())["categories"]
    assert [one["calibration"]["prevalence"] for one in written] == [0.01, 0.2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"meanings": ("red",)}, "--label red: write it as LABEL=CATEGORY"),
        ({"meanings": ("red=colour.red", "red=colour.green")}, "said to mean two categories"),
        ({"meanings": ("red=colour.rde",)}, "no category is named 'colour.rde'"),
        ({"meanings": ("rde=colour.red",)}, "no image is labelled 'rde'"),
        ({"prevalence": ("colour.rde=0.1",)}, "no category is named 'colour.rde'"),
        ({"prevalence": ("0",)}, "--prevalence 0: write a share above 0 and below 1"),
        ({"prevalence": ("1.0",)}, "write a share above 0 and below 1"),
        ({"prevalence": ("nan",)}, "write a share above 0 and below 1"),
        ({"prevalence": ("colour.red=few",)}, "write a share above 0 and below 1"),
        ({"report": Path("/nowhere/report.html")}, "/nowhere"),
        ({"given": Path("nowhere.csv")}, "nowhere.csv: cannot be read"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded_and_nothing_is_written(
    calibrated: Callable[..., Exit],
    policy: Path,
    load: Loads,
    options: dict[str, object],
    sentence: str,
) -> None:
    before = policy.read_bytes()
    with pytest.raises(Misconfigured, match=sentence):
        calibrated(**options)
    assert policy.read_bytes() == before
    assert load.times == 0


def test_a_policy_for_another_model_is_refused(
    calibrated: Callable[..., Exit], policy: Path
) -> None:
    policy.write_bytes(policy_bytes(RED, model="pocket"))
    with pytest.raises(Misconfigured, match="written for the model 'pocket'"):
        calibrated()


def test_thresholds_that_a_tenants_override_contradicts_are_refused_and_nothing_written(
    calibrated: Callable[..., Exit], policy: Path
) -> None:
    wanted = category("colour.red", review=0.01, block={"target": {"recall": 0.7}})
    tenants = {"shop": {"colour.red": {"review": 0.99}}}
    policy.write_bytes(policy_bytes(wanted, tenants=tenants))
    before = policy.read_bytes()
    with pytest.raises(Misconfigured, match=r"the policy would be invalid:(.|\n)*is above `block`"):
        calibrated()
    assert policy.read_bytes() == before


# ---------------------------------------------------------------- writing


@pytest.fixture
def file(policy: Path) -> Iterator[PolicyFile]:
    """No test leaves anything beside the policy."""
    yield PolicyFile.read(policy)
    assert not [name for name in os.listdir(policy.parent) if name.startswith(".policy")]


def test_a_policy_that_was_edited_meanwhile_is_not_written_over(file: PolicyFile) -> None:
    edited = policy_bytes(RED)
    file.path.write_bytes(edited)
    with pytest.raises(Misconfigured, match="was edited meanwhile"):
        file.write(file.text + "\n")
    assert file.path.read_bytes() == edited


def test_a_byte_order_mark_stays(policy: Path) -> None:
    policy.write_bytes(b"\xef\xbb\xbf" + policy_bytes(RED))
    file = PolicyFile.read(policy)
    file.write(file.text + "\n")
    assert policy.read_bytes() == b"\xef\xbb\xbf" + policy_bytes(RED) + b"\n"


def test_what_would_be_invalid_is_not_written(file: PolicyFile) -> None:
    with pytest.raises(Misconfigured, match="nothing was written, since with this"):
        file.write(file.text.replace('"review": 0.5', '"review": 5'))
    assert file.path.read_bytes() == file.raw


def test_a_write_that_fails_leaves_the_policy_as_it_was(
    file: PolicyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Misconfigured, match=r"cannot be replaced \(No space left on device\)"):
        file.write(file.text + "\n")
    assert file.path.read_bytes() == file.raw


def test_a_process_killed_while_it_writes_leaves_the_policy_as_it_was(policy: Path) -> None:
    before = policy.read_bytes()
    program = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from worker.authoring.policy_file import PolicyFile\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "file = PolicyFile.read(Path(sys.argv[1]))\n"
        "file.write(file.text + '\\n')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(policy)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert policy.read_bytes() == before
