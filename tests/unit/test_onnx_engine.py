"""The image tower by ONNX Runtime, on a tiny CLIP with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fakes_device import tiny_tower
from tests.unit.test_embed import noise
from worker.embed import load_encoder
from worker.errors import Misconfigured
from worker.torch_engine import ImageTower, TorchEngine
from worker.types import Float32Rows, Pixels

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

from worker.onnx_engine import OnnxEngine, cache_folder, load_onnx


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return tiny_tower()


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield cache_folder()


def load(tower: ImageTower) -> OnnxEngine | None:
    return load_onnx(tower, TorchEngine(tower), weights_digest="tiny", streams=1, cores=1)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_are_those_of_torch_for_any_number_of_images(tower: ImageTower, count: int) -> None:
    engine = load(tower)
    assert engine is not None
    assert np.allclose(engine(noise(count)), TorchEngine(tower)(noise(count)), atol=1e-5)


def test_a_graph_is_kept_for_the_next_start(tower: ImageTower, cache: Path) -> None:
    assert load(tower) is not None
    [kept] = cache.iterdir()
    written = kept.stat()
    assert load(tower) is not None
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_graph_that_is_damaged_is_made_again(tower: ImageTower, cache: Path) -> None:
    assert load(tower) is not None
    [kept] = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    engine = load(tower)
    assert engine is not None
    assert np.allclose(engine(noise(3)), TorchEngine(tower)(noise(3)), atol=1e-5)
    assert len(kept.read_bytes()) > len(whole) // 2


def test_a_cache_that_cannot_be_written_is_done_without(
    tower: ImageTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imagewarden").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load(tower) is not None


class Other:
    """Gives other rows than the tower."""

    name = "other"
    preferred_batch = 1

    def __call__(self, pixels: Pixels) -> Float32Rows:
        return np.eye(24, dtype=np.float32)[np.zeros(len(pixels), int)]


def test_an_engine_that_does_not_agree_with_torch_is_not_used(tower: ImageTower) -> None:
    assert load_onnx(tower, Other(), weights_digest="tiny", streams=1, cores=1) is None


def test_the_engine_onnx_in_half_precision_is_refused() -> None:
    with pytest.raises(Misconfigured, match="on a CPU in fp32"):
        load_encoder("pocket", device="cpu", precision="bf16", engine="onnx")


def test_the_engine_onnx_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match=r"needs onnxruntime .*pip install"):
        load_encoder("pocket", device="cpu", engine="onnx")
