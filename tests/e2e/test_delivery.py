"""What is promised of every request, with the processes and brokers it is promised for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import chain

import pytest

from tests.e2e.scene import (
    KAFKA,
    Ledger,
    all_records,
    answers_to,
    committed_records,
    ended,
    eventually,
    fake_worker,
    gallery,
    picture,
    request,
    requests_of,
    starting_fake_worker,
    terminated,
    verdicts_on,
)
from worker.demo.image_server import ImageServer, Reply, serving
from worker.demo.stage import Exchange, Stage
from worker.errors import ErrorCode, MalformedReason
from worker.schema import DeadLetter, Verdict
from worker.topics import TopicReader

on_apache_kafka = pytest.mark.skipif(
    KAFKA is None,
    reason="the embedded broker has no transactions, and killed members can wedge their group; "
    "`make test-kafka` runs it",
)

DEADLY_WORKER = (sys.executable, "-m", "tests.e2e.deadly_worker")
REQUESTS = 120


async def committed_verdicts(on: Stage) -> list[Verdict]:
    """As one who reads committed data sees them."""
    async with (
        asyncio.timeout(60),
        TopicReader(
            bootstrap=on.broker,
            topic=on.topics.verdicts_topic,
            client_id="tests",
            options={"isolation_level": "read_committed"},
        ) as reader,
    ):
        return [
            Verdict.model_validate_json(record.value or b"") async for record in reader.read_all()
        ]


@on_apache_kafka
async def test_exactly_once_a_worker_that_is_killed_loses_and_repeats_nothing(on: Stage) -> None:
    on.images.replies |= gallery(REQUESTS, delay_seconds=0.1)
    requests = requests_of(on, on.images.replies)
    settings = {
        "DELIVERY": "exactly_once",
        "KAFKA__TRANSACTIONAL_ID": f"{on.topics.group}.slot",
        "WORK__IMAGES": "8",
    }
    async with Exchange(on) as exchange:
        ledger = Ledger(requests)
        with fake_worker(on, **settings) as worker:
            await exchange.publish(requests)
            await ledger.fill(exchange, count=REQUESTS // 6)
            worker.process.kill()
            await ended(worker)
        with fake_worker(on, **settings) as replacement:
            await ledger.fill(exchange)
            assert await terminated(replacement) == 0
    verdicts = await committed_verdicts(on)
    assert sorted(verdict.request_id for verdict in verdicts) == sorted(requests)
    assert committed_records(on) >= REQUESTS  # markers of transactions take offsets too


@on_apache_kafka
async def test_record_that_kills_its_process_becomes_a_dead_letter_and_the_rest_is_answered(
    on: Stage,
) -> None:
    on.images.replies |= gallery(6) | {"/killer.jpg": Reply(picture("black"))}
    requests = requests_of(on, on.images.replies)
    answers: dict[str, Verdict | DeadLetter] = {}

    async def collect(exchange: Exchange) -> None:
        while answers.keys() != requests.keys():
            name, answer = await exchange.answer()
            answers[name] = answer

    async with Exchange(on) as exchange:
        await exchange.publish(requests)
        collecting = asyncio.create_task(collect(exchange))
        deaths = -1
        while not collecting.done():
            deaths += 1
            with starting_fake_worker(on, command=DEADLY_WORKER) as worker:
                await eventually(
                    lambda worker=worker: worker.process.poll() is not None or collecting.done(),
                    "it dies, or all is answered",
                )
        await collecting
    assert deaths == 4  # three with others in work, the last one alone
    letter = answers.pop("/killer.jpg")
    assert isinstance(letter, DeadLetter)
    assert letter.reason == MalformedReason.POISON
    assert all(isinstance(answer, Verdict) for answer in answers.values())


@pytest.fixture
def silent_host() -> Iterator[ImageServer]:
    with serving({f"/silent/{n}": Reply(delay_seconds=600) for n in range(30)}) as host:
        yield host


async def test_host_that_never_answers_costs_the_others_nothing(
    on: Stage, silent_host: ImageServer
) -> None:
    on.images.replies |= gallery(30)
    good = requests_of(on, on.images.replies)
    silent = {path: request(path, silent_host.url(path)) for path in silent_host.replies}
    mixed = dict(chain.from_iterable(zip(silent.items(), good.items(), strict=True)))
    with fake_worker(
        on,
        FETCH__ALLOW=f"127.0.0.1:{on.images.port},127.0.0.1:{silent_host.port}",
        FETCH__TOTAL_TIMEOUT_SECONDS="600",
        WORK__IMAGES="8",
        WORK__IN_FLIGHT="16",
        HOST__BREAKER_SECONDS="600",
        HOST__SILENCE_SECONDS="0.5",
    ):
        async with Exchange(on) as exchange:
            await exchange.publish(mixed)
            answers: dict[str, Verdict | DeadLetter] = {}
            async with asyncio.timeout(60):
                # the downloads of its share, four, are under way for ten minutes
                while len(answers) < len(mixed) - 4:
                    name, answer = await exchange.answer()
                    answers[name] = answer
    for name in good:
        verdict = answers[name]
        assert isinstance(verdict, Verdict)
        assert verdict.status == "ok"
    for name in silent.keys() & answers.keys():
        verdict = answers[name]
        assert isinstance(verdict, Verdict)
        assert verdict.error is not None
        assert verdict.error.code == ErrorCode.HOST_UNAVAILABLE
        assert verdict.error.retry_at is not None


async def test_failure_that_passes_is_superseded_by_a_later_verdict(on: Stage) -> None:
    on.images.replies["/a.jpg"] = Reply(status=503)
    with fake_worker(on, RETRY__DELAY_SECONDS="0.2", FETCH__ATTEMPTS="1") as worker:
        async with Exchange(on) as exchange:
            first = (await verdicts_on(exchange, requests_of(on, ["/a.jpg"])))["/a.jpg"]
            on.images.replies["/a.jpg"] = Reply(picture("red"))
            async with asyncio.timeout(60):
                _, second = await exchange.answer()
        assert await terminated(worker) == 0
    assert isinstance(second, Verdict)
    assert (first.decision, second.decision) == ("undetermined", "block")
    assert second.supersedes == first.verdict_id
    assert len(await all_records(on, on.topics.retries_topic)) == 1


async def test_worker_that_rejects_what_it_reads_stops_with_a_reason(on: Stage) -> None:
    records = {f"bad-{n}": b"not JSON" for n in range(100)}
    async with Exchange(on) as exchange:
        await exchange.publish(records)
        with fake_worker(on, WORK__REJECTED_WINDOW="20") as worker:
            assert await ended(worker) == 70
            [halted] = worker.lines("halted")
            assert "MAX_REJECTED_SHARE" in halted["why"]
    assert len(await all_records(on, on.topics.dead_letters_topic)) <= 10  # of a hundred
    assert committed_records(on) <= 10


async def test_backfill_is_read_beside_the_requests(on: Stage) -> None:
    on.images.replies |= gallery(1)
    # a topic that there is, for the sake of having no other
    with fake_worker(
        on, KAFKA__BACKFILL_TOPIC=on.topics.requests_topic, RETRY__ATTEMPTS="0"
    ) as worker:
        async with Exchange(on) as exchange:
            await answers_to(exchange, requests_of(on, ["/0.jpg"]))
            async with asyncio.timeout(60):
                _, again = await exchange.answer()
        assert isinstance(again, Verdict)
        assert await terminated(worker) == 0
