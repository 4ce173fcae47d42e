"""What open_clip's own trainer writes is a checkpoint that can be loaded."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from worker.demo.photos import jpeg, photos
from worker.embed import load_encoder
from worker.errors import Misconfigured

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
#: The trainer knows an architecture by name; README gives this a name that open_clip has.
TRAINER = """
import sys, open_clip
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny-clip.json"
    path.write_text(json.dumps(TINY))
    return path


def trained(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint with all that ``open_clip_train.main`` puts into one, on several devices and
    with mixed precision, after a step; and the weights in it."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    texts = open_clip.tokenize(["a cat", "a rocket"], context_length=16)
    image, text, scale = model(torch.rand(2, 3, 32, 32), texts)
    (scale * image @ text.T).sum().backward()
    optimiser.step()
    state = model.state_dict()
    checkpoint = {
        "epoch": 2,
        "name": "firearms",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": optimiser.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, folder / "epoch_2.pt")
    return folder / "epoch_2.pt", state


def test_checkpoint_of_the_trainer_is_loaded_with_the_weights_it_holds(
    config: Path, tmp_path: Path
) -> None:
    checkpoint, state = trained(tmp_path)
    encoder = load_encoder("firearms", checkpoint=checkpoint, model_config=config, device="cpu")
    assert encoder.info.name == "firearms"
    assert encoder.info.logit_scale == pytest.approx(state["logit_scale"].exp().item())
    plain = tmp_path / "plain.pt"
    torch.save(state, plain)
    same = load_encoder("firearms", checkpoint=plain, model_config=config, device="cpu")
    assert encoder.info.weights_digest == same.info.weights_digest


def test_checkpoint_of_another_architecture_is_refused_in_a_sentence(
    config: Path, tmp_path: Path
) -> None:
    checkpoint, _ = trained(tmp_path)
    other = tmp_path / "other-clip.json"
    other.write_text(json.dumps({**TINY, "embed_dim": 32}))
    with pytest.raises(Misconfigured, match=r"epoch_2\.pt cannot be loaded as other-clip"):
        load_encoder("firearms", checkpoint=checkpoint, model_config=other, device="cpu")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pandas", "webdataset")),
    reason="open_clip's trainer is not installed: pip install 'open_clip_torch[training]'",
)
def test_trainer_fine_tunes_on_a_csv_of_paths_and_sentences_what_is_then_loaded(
    config: Path, tmp_path: Path
) -> None:
    taken = photos()
    names = ["astronaut", "chelsea", "coffee", "rocket"]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title"])
        for name in names:
            (tmp_path / f"{name}.jpg").write_bytes(jpeg(taken[name]))
            rows.writerow([tmp_path / f"{name}.jpg", f"a photo of {name}"])
    options = (
        "--dataset-type csv --train-data train.csv --csv-separator , --csv-img-key filepath "
        "--csv-caption-key title --model tiny-clip --lr 1e-3 --warmup 1 --batch-size 4 "
        "--epochs 1 --workers 0 --device cpu --precision fp32 --logs logs --name firearms"
    )
    subprocess.run(
        [sys.executable, "-c", TRAINER, str(config), *options.split()],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    checkpoint = tmp_path / "logs" / "firearms" / "checkpoints" / "epoch_1.pt"
    encoder = load_encoder("firearms", checkpoint=checkpoint, model_config=config, device="cpu")
    embedded = encoder.encode_texts(["a photo of a rocket"])
    assert np.linalg.norm(embedded) == pytest.approx(1.0, abs=1e-5)
