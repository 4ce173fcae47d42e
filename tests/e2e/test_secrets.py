"""Query strings are credentials: they end up nowhere."""

from __future__ import annotations

from http import HTTPStatus

import redis

from tests.e2e.scene import all_records, answers_to, fake_worker, picture, request
from worker.demo.image_server import Reply
from worker.demo.stage import TOPICS, Exchange, Stage
from worker.schema import DEAD_LETTER_HEADER, Verdict

SECRET = "hunter2hunter2"

REPLIES = {
    "/red.jpg": Reply(picture("red")),
    "/page.jpg": Reply(b"<!doctype html>"),
    "/broken.jpg": Reply(status=HTTPStatus.INTERNAL_SERVER_ERROR),
    "/moved.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": f"/red.jpg?token={SECRET}-moved"}
    ),
    "/away.jpg": Reply(
        status=HTTPStatus.FOUND, headers={"Location": f"http://10.0.0.1/?token={SECRET}"}
    ),
    "/loop.jpg": Reply(status=HTTPStatus.FOUND, headers={"Location": f"/loop.jpg?t={SECRET}"}),
}

MALFORMED = {
    "not-json": f"http://127.0.0.1/?token={SECRET}".encode(),
    "two-images": request("two-images", f"http://127.0.0.1/?token={SECRET}", data=""),
    "unknown-field": request("unknown-field", "http://127.0.0.1/", token=SECRET),
    "wrong-type": request("wrong-type", data="", tenant=[SECRET]),
}


async def test_a_credential_in_a_url_is_in_no_answer_log_metric_or_cache(on: Stage) -> None:
    on.images.replies |= REPLIES
    urls = [on.images.url(f"{path}?token={SECRET}") for path in (*REPLIES, "/gone.jpg")]
    urls += [
        on.images.url(f"/red.jpg#{SECRET}"),
        f"http://10.0.0.1/red.jpg?token={SECRET}",
        f"ftp://127.0.0.1/red.jpg?token={SECRET}",
        f"http://somebody:{SECRET}@127.0.0.1:{on.images.port}/red.jpg",
        f"http://[/?token={SECRET}",
        f"http://127.0.0.1:{on.images.port}?token={SECRET}",
    ]
    records = {f"{n}": request(f"{n}", url) for n, url in enumerate(urls)} | MALFORMED
    async with Exchange(on.broker) as exchange:
        with fake_worker(on, LOG__LEVEL="debug") as worker:
            answers = await answers_to(exchange, records)
            metrics = worker.metrics()
            assert worker.stop() == 0
    assert sum(isinstance(given, Verdict) for given in answers.values()) == len(urls)

    verdicts = await all_records(on, TOPICS.verdicts_topic)
    embeddings = await all_records(on, TOPICS.embeddings_topic)
    letters = await all_records(on, TOPICS.dead_letters_topic)
    assert (len(verdicts), len(embeddings), len(letters)) == (len(urls), 1, len(MALFORMED))
    with redis.Redis.from_url(on.redis) as client:
        kept = {bytes(key): client.get(key) for key in client.scan_iter()}
    assert kept
    places = {
        "verdicts": repr(verdicts),
        "embeddings": repr(embeddings),
        # The value of a dead letter is the record as it came; why it is one, we wrote
        "dead letters": repr([dict(letter.headers)[DEAD_LETTER_HEADER] for letter in letters]),
        "log": worker.log.read_text(),
        "metrics": metrics,
        "redis": repr(kept),
    }
    assert [place for place, text in places.items() if SECRET in text] == []
