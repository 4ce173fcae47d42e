"""Loading models and encoding with them, on a tiny CLIP with random weights; no network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from worker.embed import OpenClipEncoder, Streams, load_encoder
from worker.errors import DeviceOutOfMemory, Misconfigured
from worker.imaging import Limits, decode
from worker.pocket import build_pocket
from worker.torch_engine import ImageTower, TorchEngine, preprocess_of
from worker.types import FramePlan, PreprocessSpec

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
#: float16 keeps 11 bits and bfloat16 8, through four layers.
HALF = {"fp16": 0.02, "bf16": 0.1}


def state_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = open_clip.CLIP(**config).state_dict()
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as ``tiny.pt`` and ``tiny.safetensors``, and ``tiny.json`` that fits."""
    folder = tmp_path_factory.mktemp("model")
    state = state_of(TINY)
    torch.save(state, folder / "tiny.pt")
    save_file(state, folder / "tiny.safetensors")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> OpenClipEncoder:
    return load(folder)


def load(folder: Path, checkpoint: str = "tiny.pt", **options: Any) -> OpenClipEncoder:
    options = {"model_config": folder / "tiny.json", "device": "cpu", **options}
    return load_encoder("tiny", checkpoint=folder / checkpoint, **options)


def noise(count: int = 3, side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_the_same_model_as_safetensors_and_as_a_state_dict(
    folder: Path, tiny: OpenClipEncoder
) -> None:
    other = load(folder, "tiny.safetensors")
    assert other.info == tiny.info
    assert np.allclose(other.encode_images(noise()), tiny.encode_images(noise()), atol=1e-6)


def test_a_model_whose_tokenizer_is_not_installed_is_refused_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "somebody/texts"}}
    (folder / "others.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "transformers", None)  # to import it fails
    with pytest.raises(Misconfigured, match=r"'tiny': .* transformers"):
        load(folder, model_config=folder / "others.json")


def test_a_checkpoint_goes_by_the_name_it_is_given(tiny: OpenClipEncoder) -> None:
    assert tiny.info.name == "tiny"
    assert tiny.info.dimension == 24
    assert tiny.info.logit_scale == pytest.approx(1 / 0.07)


def test_a_training_checkpoint_that_wraps_the_weights_is_unwrapped(
    folder: Path, tiny: OpenClipEncoder, tmp_path: Path
) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in state_of(TINY).items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    encoder = load(folder, str(tmp_path / "epoch_3.pt"))
    assert encoder.info.weights_digest == tiny.info.weights_digest


def test_a_config_file_may_say_how_pixels_are_prepared(folder: Path, tmp_path: Path) -> None:
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    assert load(folder, model_config=config).info.preprocess == PreprocessSpec(
        size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="squash"
    )


def test_another_bit_in_the_weights_is_another_digest(folder: Path, tiny: OpenClipEncoder) -> None:
    state = state_of(TINY)
    state["visual.proj"][0, 0] += 1e-6
    torch.save(state, folder / "changed.pt")
    changed = load(folder, "changed.pt").info
    assert changed.weights_digest != tiny.info.weights_digest
    assert changed.digest != tiny.info.digest


class Payload:
    """What a malicious checkpoint does when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.marker,))


def test_a_checkpoint_cannot_run_code(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": Payload(marker)}, tmp_path / "evil.pt")
    with pytest.raises(Misconfigured, match=r"evil\.pt cannot be loaded"):
        load(folder, str(tmp_path / "evil.pt"))
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\3\4 neither"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused(
    folder: Path, tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=f"broken{suffix} cannot be loaded as tiny"):
        load(folder, str(path))


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(state_of({**TINY, "embed_dim": 16}), tmp_path / "other.pt")
    with pytest.raises(Misconfigured, match="cannot be loaded as tiny"):
        load(folder, str(tmp_path / "other.pt"))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("ViT-B32/openai", {}, r"no architecture 'ViT-B32' \(did you mean .*ViT-B-32"),
        ("ViT-L-14/datacomp_xl_s13b", {}, "did you mean datacomp_xl_s13b_b90k"),
        ("ViT-L-14", {}, "no weights '' for ViT-L-14.*it has: .*laion2b_s32b_b82k"),
        ("poket", {}, "or pocket"),
        ("pocket", {"model_config": "ViT-B-32"}, "without a checkpoint"),
        ("mine", {"checkpoint": Path("/nowhere/x.pt")}, "/nowhere/x.pt is not a file"),
        ("pocket", {"device": "abacus"}, "the device 'abacus' cannot be used"),
        ("local-dir:/nowhere", {}, "cannot be loaded"),
    ],
)
def test_a_wrong_name_is_refused_in_a_sentence(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Misconfigured, match=sentence):
        load_encoder(name, **options)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "comes without a model config"),
        ("ViT-B32", r"neither a file nor an open_clip architecture \(did you mean .*ViT-B-32"),
    ],
)
def test_a_checkpoint_needs_a_config_that_is_known(
    folder: Path, config: str | None, sentence: str
) -> None:
    with pytest.raises(Misconfigured, match=sentence):
        load(folder, model_config=config)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "is not a JSON file"), ("[]", "is not a JSON file"), ("{}", "has no embed_dim")],
)
def test_a_config_file_that_is_none_is_refused(
    folder: Path, tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(Misconfigured, match=sentence):
        load(folder, model_config=tmp_path / "config.json")


def test_pocket_is_the_name_of_one_model_only(folder: Path) -> None:
    with pytest.raises(Misconfigured, match="name yours"):
        load_encoder("pocket", checkpoint=folder / "tiny.pt", model_config=folder / "tiny.json")


# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_moves_embeddings_little_and_has_a_digest_of_its_own(
    folder: Path, tiny: OpenClipEncoder, precision: str
) -> None:
    half = load(folder, precision=precision)
    assert half.info.precision == precision
    assert half.info.weights_digest == tiny.info.weights_digest
    assert half.info.digest != tiny.info.digest
    for rows, exact in (
        (half.encode_images(noise()), tiny.encode_images(noise())),
        (half.encode_texts(["a cat", "two dogs"]), tiny.encode_texts(["a cat", "two dogs"])),
    ):
        assert rows.dtype == np.float32
        assert np.allclose(rows, exact, atol=HALF[precision])


def test_a_cpu_computes_in_full_precision_by_itself(tiny: OpenClipEncoder) -> None:
    assert tiny.info.precision == "fp32"


def test_pixels_are_prepared_as_open_clip_prepares_them(tiny: OpenClipEncoder) -> None:
    torch.manual_seed(0)
    reference = open_clip.CLIP(**TINY).eval()
    transform = open_clip.image_transform(32, is_train=False)
    images = torch.stack([transform(Image.fromarray(one)) for one in noise()])
    with torch.inference_mode():
        expected = reference.encode_image(images, normalize=True).numpy()
    assert np.allclose(tiny.encode_images(noise()), expected, atol=1e-5)


def test_what_is_decoded_has_the_size_that_the_model_asks_for(
    folder: Path, tiny: OpenClipEncoder, tmp_path: Path
) -> None:
    Image.fromarray(noise(1, side=90)[0]).save(tmp_path / "image.png")
    limits = Limits(max_pixels=10_000, max_total_pixels=10_000)
    body = (tmp_path / "image.png").read_bytes()
    pixels = decode(body, "", tiny.info.preprocess, FramePlan(), limits).pixels
    assert tiny.encode_images(pixels).shape == (1, 24)


@pytest.mark.parametrize(
    "pixels", [noise(2, side=31), noise(2).astype(np.float32), noise(2)[0], noise(2)[..., :1]]
)
def test_pixels_of_another_shape_or_type_are_a_bug(
    tiny: OpenClipEncoder, pixels: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels of shape"):
        tiny.encode_images(pixels)


def test_more_images_than_a_batch_are_encoded_in_chunks(tiny: OpenClipEncoder) -> None:
    pixels = noise(2 * tiny.preferred_batch + 1)
    halves = np.concatenate([tiny.encode_images(pixels[:5]), tiny.encode_images(pixels[5:])])
    assert np.allclose(tiny.encode_images(pixels), halves, atol=1e-6)


def test_rows_that_are_not_finite_are_shown_and_a_canary_finds_them(
    folder: Path, tmp_path: Path
) -> None:
    state = state_of(TINY)
    state["visual.proj"][:] = torch.inf
    torch.save(state, tmp_path / "infinite.pt")
    broken = load(folder, str(tmp_path / "infinite.pt"))
    assert not np.isfinite(broken.encode_images(noise(1))).any()
    with pytest.raises(Misconfigured, match="no finite embedding of a test image in fp32"):
        broken.warm_up()


class Greedy(open_clip.CLIP):  # type: ignore[misc]
    """Wants more memory for three images than there is on any device."""

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        if len(image) >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 EiB.\nDetails")
        features: torch.Tensor = super().encode_image(image, normalize)
        return features


def test_a_device_without_memory_for_a_batch_says_so_and_takes_a_smaller_one() -> None:
    torch.manual_seed(0)
    model = Greedy(**TINY).eval()
    config = {"size": 32, "mean": 0.5, "std": 0.5, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(
        model, {**config, "resize_mode": "shortest", "fill_color": 0}
    )
    encoder = OpenClipEncoder(
        "greedy",
        model,
        partial(open_clip.tokenize, context_length=16),
        TorchEngine(ImageTower(model)),
        weights_digest="sha256:" + "0" * 64,
        precision="fp32",
        streams=Streams(1, 1),
    )
    with pytest.raises(DeviceOutOfMemory, match=r"no memory for 3 rows: .*7 EiB\.$") as raised:
        encoder.encode_images(noise(3))
    assert raised.value.__context__ is None  # whose traceback would hold the batch's memory
    assert encoder.encode_images(noise(2)).shape == (2, 24)


def test_a_model_that_works_warms_up(tiny: OpenClipEncoder) -> None:
    tiny.warm_up()


def test_loading_has_all_cores_and_streams_their_share() -> None:
    streams = Streams(2, 2)
    assert streams.on_all_cores(torch.get_num_threads) == 2
    assert streams.threads.submit(torch.get_num_threads).result() == 1


def test_a_text_longer_than_the_model_reads_is_cut_off(tiny: OpenClipEncoder) -> None:
    rows = tiny.encode_texts(["a cat " * 500, "a cat " * 600])
    assert np.allclose(rows[0], rows[1], atol=1e-6)


@pytest.mark.parametrize("tag", ["bilinear", "bicubic", "random"])
def test_what_is_not_bilinear_is_bicubic_as_in_open_clip(tag: str) -> None:
    model = open_clip.CLIP(**TINY)
    config = {"size": 32, "mean": 0.5, "std": 0.5, "interpolation": tag}
    open_clip.set_model_preprocess_cfg(model, {**config, "resize_mode": "longest", "fill_color": 9})
    assert preprocess_of(model) == PreprocessSpec(
        size=(32, 32),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation="bilinear" if tag == "bilinear" else "bicubic",
        resize_mode="longest",
        fill=9,
    )


# ---------------------------------------------------------------- pocket


@pytest.fixture(scope="module")
def pocket() -> OpenClipEncoder:
    return load_encoder("pocket", device="cpu")


def test_pocket_says_what_it_is(pocket: OpenClipEncoder) -> None:
    info = pocket.info
    assert (info.name, info.dimension, info.precision) == ("pocket", 384, "fp32")
    assert info.logit_scale == pytest.approx(20)
    assert info.preprocess == PreprocessSpec(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_the_padding_of_other_texts_changes_no_text_of_pocket(pocket: OpenClipEncoder) -> None:
    short, long = "a cat", "a very long description of a cat " * 5
    alone, beside = pocket.encode_texts([short]), pocket.encode_texts([short, long])
    assert np.allclose(alone[0], beside[0], atol=1e-5)


def test_texts_that_mean_the_same_are_nearer_to_each_other_in_pocket(
    pocket: OpenClipEncoder,
) -> None:
    gun, pistol, cake = pocket.encode_texts(["a gun", "a pistol", "a birthday cake"])
    assert gun @ pistol > gun @ cake + 0.2


def test_folding_batch_norms_changes_no_embedding_of_pocket(pocket: OpenClipEncoder) -> None:
    model, _ = build_pocket()
    pixels = noise(2, side=224)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        unfolded = model.encode_image(images, normalize=True).double().numpy()
    cosines = (unfolded * pocket.encode_images(pixels)).sum(axis=1)
    assert (cosines >= 0.999999).all()
