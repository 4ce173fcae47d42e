"""What is published is compressed as the settings say."""

from __future__ import annotations

import pytest
from kafka import codec

from tests.e2e.scene import all_records, command, fake_worker, picture
from worker.demo.image_server import Reply
from worker.demo.stage import Stage


async def test_requests_and_what_comes_of_them_are_compressed_as_set(
    on: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    on.images.replies["/blue.jpg"] = Reply(picture("blue"))
    long_enough = on.images.url("/blue.jpg?" + 300 * "a")  # what gets no smaller is left as it is
    settings = {"KAFKA__COMPRESSION": "zstd"}
    with fake_worker(on, **settings):
        done = command("publish", "--wait", "50", long_enough, on=on, settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr(codec, "zstd", None)
    for topic in (on.topics.requests_topic, on.topics.verdicts_topic, on.topics.embeddings_topic):
        (record,) = await all_records(on, topic)
        assert "zstd compression codec not found" in (record.unreadable or "")
