"""The same image asked for many times is downloaded once and embedded once."""

from __future__ import annotations

from collections import Counter

from tests.e2e.scene import all_records, fake_worker, gallery, metric, requests_of, verdicts_on
from worker.demo.stage import Exchange, Stage

IMAGES = 30
TIMES = 10


async def test_each_image_is_fetched_and_embedded_once(on: Stage) -> None:
    on.images.replies |= gallery(IMAGES)
    requests = {
        name: value
        for time in range(TIMES)
        for name, value in requests_of(on, on.images.replies, f"{time}").items()
    }
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            verdicts = await verdicts_on(exchange, requests)
            assert metric(worker, "imagewarden_batch_rows_sum") == IMAGES
    assert len(verdicts) == IMAGES * TIMES
    assert on.images.hits == dict.fromkeys(on.images.replies, 1)
    assert Counter(verdict.cache for verdict in verdicts.values())["none"] == IMAGES
    embeddings = await all_records(on, on.topics.embeddings_topic)
    assert len(embeddings) == len({record.key for record in embeddings}) == IMAGES


async def test_the_same_content_under_other_urls_is_embedded_once(on: Stage) -> None:
    [reply] = gallery(1).values()
    on.images.replies |= {f"/{n}.jpg": reply for n in range(IMAGES)}
    async with Exchange(on) as exchange:
        with fake_worker(on):
            verdicts = await verdicts_on(exchange, requests_of(on, on.images.replies))
    assert {verdict.decision for verdict in verdicts.values()} == {"block"}
    assert len(await all_records(on, on.topics.embeddings_topic)) == 1


async def test_another_worker_takes_from_redis_what_the_first_one_saw(on: Stage) -> None:
    on.images.replies |= gallery(IMAGES)
    async with Exchange(on) as exchange:
        with fake_worker(on) as first:
            before = await verdicts_on(exchange, requests_of(on, on.images.replies, "first"))
            assert first.stop() == 0
        with fake_worker(on):
            after = await verdicts_on(exchange, requests_of(on, on.images.replies, "second"))
    assert {verdict.cache for verdict in after.values()} == {"redis"}
    assert on.images.hits == dict.fromkeys(on.images.replies, 1)
    for path in on.images.replies:
        assert before[f"first{path}"].categories == after[f"second{path}"].categories
