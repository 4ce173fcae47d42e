"""What every encoder owes its callers: the fake one that tests use, and the real pocket model with
either engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakeEncoder
from worker.embed import load_encoder
from worker.seams import Encoder
from worker.types import Pixels


@pytest.fixture(scope="module", params=["fake", "torch", "onnx"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param == "fake":
        return FakeEncoder()
    if request.param == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    encoder = load_encoder("pocket", device="cpu", engine=request.param)
    assert encoder.engine == request.param
    return encoder


def pixels_of(encoder: Encoder, count: int) -> Pixels:
    height, width = encoder.info.preprocess.size
    noise = np.random.default_rng(1)
    colours = noise.integers(0, 256, (count, 1, 1, 3))
    grain = noise.integers(-20, 20, (count, height, width, 3))
    return np.clip(colours + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("count", [0, 1, 3, 9, 20])
def test_n_images_give_n_unit_rows(encoder: Encoder, count: int) -> None:
    rows = encoder.encode_images(pixels_of(encoder, count))
    assert rows.shape == (count, encoder.info.dimension)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_n_texts_give_n_unit_rows(encoder: Encoder, count: int) -> None:
    rows = encoder.encode_texts([f"a photo of thing number {number}" for number in range(count)])
    assert rows.shape == (count, encoder.info.dimension)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)


def test_rows_come_in_the_order_of_the_images(encoder: Encoder) -> None:
    pixels = pixels_of(encoder, 5)
    assert np.allclose(
        encoder.encode_images(pixels[::-1]), encoder.encode_images(pixels)[::-1], atol=1e-4
    )


def test_image_is_embedded_alike_alone_and_in_a_batch(encoder: Encoder) -> None:
    pixels = pixels_of(encoder, 8)
    alone = np.concatenate([encoder.encode_images(pixels[[index]]) for index in range(8)])
    assert np.allclose(alone, encoder.encode_images(pixels), atol=1e-4)


def test_different_images_and_texts_are_told_apart(encoder: Encoder) -> None:
    assert len(np.unique(encoder.encode_images(pixels_of(encoder, 4)).round(4), axis=0)) == 4
    assert len(np.unique(encoder.encode_texts(["a cat", "a gun", "red"]).round(4), axis=0)) == 3


@pytest.mark.parametrize("text", ["", " ", "äöü 漢字 🐈", "word " * 500])
def test_any_text_gives_a_finite_row(encoder: Encoder, text: str) -> None:
    assert np.isfinite(encoder.encode_texts([text])).all()


def test_images_and_texts_may_be_encoded_at_the_same_time(encoder: Encoder) -> None:
    pixels, texts = pixels_of(encoder, 8), ["a cat", "a gun"]
    with ThreadPoolExecutor(4) as threads:
        images = [threads.submit(encoder.encode_images, pixels) for _ in range(4)]
        words = [threads.submit(encoder.encode_texts, texts) for _ in range(4)]
        for future in images:
            assert np.allclose(future.result(), encoder.encode_images(pixels), atol=1e-4)
        for future in words:
            assert np.allclose(future.result(), encoder.encode_texts(texts), atol=1e-4)


def test_info_says_what_embeddings_depend_on(encoder: Encoder) -> None:
    info: Any = encoder.info
    assert info.weights_digest.startswith("sha256:")
    assert info.logit_scale > 0
    assert encoder.preferred_batch >= 1
