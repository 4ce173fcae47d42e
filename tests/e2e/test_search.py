"""``imagewarden search`` over what workers left on the topics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.scene import KAFKA, RED_AND_GREEN, write_policy
from tests.fakes import FakeEncoder
from tests.past_records import compiled, embedding, records, verdict
from worker.commands.render import Format
from worker.commands.search import SearchOptions, search
from worker.demo.stage import Stage, stage
from worker.errors import Misconfigured
from worker.publish import KafkaPublisher
from worker.schema import now
from worker.settings import Settings
from worker.settings_load import load_settings
from worker.types import Message

COLOURS = ("red", "green", "blue")


def load(settings: Settings) -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """An image of each colour was judged, as the item of its name."""

    async def write(on: Stage) -> None:
        publisher = KafkaPublisher(bootstrap=on.broker, client_id="past")
        await publisher.start()
        for colour in COLOURS:
            seen = embedding(colour, colour)
            said = verdict(colour, seen, compiled(*RED_AND_GREEN), at=now())
            for topic, value in (
                (on.topics.embeddings_topic, seen),
                (on.topics.verdicts_topic, said),
            ):
                [record] = records(value)
                await publisher.publish(Message(topic, record.key, record.value))
        await publisher.close()

    write_policy(tmp_path / "policy.yaml")
    with stage({}, tmp_path / "policy.yaml", broker=KAFKA) as on:
        asyncio.run(write(on))
        for name, value in on.environment().items():
            monkeypatch.setenv(name, value)
        yield on


async def found(capsys: pytest.CaptureFixture[str], query: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    await search(load_settings(), query, SearchOptions(since="1h"), Format.JSONL, load)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_text_an_image_and_its_digest_find_the_same_image(
    on: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16), (0, 255, 0)).save(tmp_path / "incident.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for query in ("green", str(tmp_path / "incident.png"), embedding("green", "green").key.sha256):
        first, *others = await found(capsys, query)
        assert first["verdicts"][0]["item_id"] == "item-green"
        assert first["verdicts"][0]["decided_by"] == "green"
        assert first["cosine"] == pytest.approx(1.0, abs=1e-3)
        assert len(others) == 2
    with pytest.raises(Misconfigured, match=r"broken\.png cannot be examined"):
        await found(capsys, str(tmp_path / "broken.png"))
