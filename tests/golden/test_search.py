"""``imagewarden search`` by text and by image, with the pocket model on photos in wheels."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.past_records import past_of, records
from tests.policy_factory import category, compiled_of, policy_of
from worker.cli import cli
from worker.demo.photos import jpeg, photos
from worker.embed import OpenClipEncoder
from worker.examined import Examined
from worker.imaging import Limits, decode
from worker.past.embedding_store import EmbeddingStore
from worker.past.parquet import write_past
from worker.past.window import Window
from worker.schema import Request
from worker.score import decide
from worker.types import Embedding, EmbeddingKey, FramePlan
from worker.verdicts import build_verdict

LIMITS = Limits(max_pixels=50_000_000, max_total_pixels=500_000_000)
POLICY = Path(__file__).resolve().parents[2] / "policies" / "pocket.yaml"


@pytest.fixture(scope="module")
def past(pocket: OpenClipEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each photo was judged once, as the item of its name."""
    compiled = compiled_of(policy_of(category(), model="pocket"), pocket)
    said, kept = [], []
    for name, photo in photos().items():
        body = jpeg(photo)
        sha256 = hashlib.sha256(body).hexdigest()
        decoded = decode(body, sha256, pocket.info.preprocess, FramePlan(), LIMITS)
        rows = pocket.encode_images(decoded.pixels).astype(np.float16)
        key = EmbeddingKey(sha256, pocket.info.digest, FramePlan().digest)
        embedding = Embedding(key, rows, decoded.facts)
        request = Request(schema_version=1, request_id=name, item_id=name, data=body)
        decided = decide(compiled, rows, None, decoded.facts.rows)
        around = (compiled.policy, pocket.info, "worker-1", 1.0)
        said.append(build_verdict(request, Examined(embedding, "none"), decided, *around, None))
        kept.append(embedding)
    path = tmp_path_factory.mktemp("past") / "past.parquet"

    async def write() -> None:
        window = Window(datetime.now(UTC) - timedelta(hours=1))
        with EmbeddingStore() as store:
            write_past(await past_of(records(*said), records(*kept), store, window), path)

    asyncio.run(write())
    return path


def search(query: str, past: Path, *options: str) -> list[dict[str, Any]]:
    arguments = [query, "--input", str(past), "--policy", str(POLICY), "--format", "jsonl"]
    done = CliRunner().invoke(cli, ["search", *arguments, *options])
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_text_finds_the_photo_that_it_describes(past: Path) -> None:
    first = search("a cup of coffee", past)[0]
    assert first["verdicts"][0]["item_id"] == "coffee"


def test_image_finds_its_own_copy_though_it_was_compressed_anew(past: Path, tmp_path: Path) -> None:
    from PIL import Image

    copy = tmp_path / "copy.jpg"
    image = Image.fromarray(np.asarray(photos()["chelsea"]))
    image.resize((image.width // 2, image.height // 2)).save(copy, quality=60)
    first, second = search(str(copy), past, "--top", "2")
    assert first["verdicts"][0]["item_id"] == "chelsea"
    assert first["cosine"] > 0.9 > second["cosine"]
