"""The command that people run, with the model and the policy that come with it."""

from __future__ import annotations

import asyncio

from tests.e2e.scene import KAFKA, metric, probe, requests_of, verdicts_on
from worker.demo.image_server import Reply
from worker.demo.photos import jpeg, photos
from worker.demo.show import POLICY
from worker.demo.stage import Exchange, Stage, stage, worker_process
from worker.schema import Verdict


async def judged(on: Stage) -> list[Verdict]:
    async with Exchange(on) as exchange:
        verdicts = await verdicts_on(exchange, requests_of(on, on.images.replies))
    return list(verdicts.values())


def test_the_worker_judges_photos_with_the_pocket_model() -> None:
    replies = {f"/{name}.jpg": Reply(jpeg(photo)) for name, photo in photos().items()}
    with stage(replies, POLICY, broker=KAFKA) as on, worker_process(on) as worker:
        assert (probe(worker, "livez")[0], probe(worker, "readyz")[0]) == (200, 200)
        assert metric(worker, "imagewarden_ready") == 1
        assert metric(worker, "imagewarden_model_info", name="pocket") == 1
        verdicts = asyncio.run(judged(on))
        assert worker.stop() == 0
        log = worker.log.read_text().splitlines()
    assert [line for line in log if not line.startswith("{")] == []
    assert {verdict.status for verdict in verdicts} == {"ok"}
    assert {verdict.model.name for verdict in verdicts} == {"pocket"}
    assert {verdict.decision for verdict in verdicts} == {"allow", "review", "block"}
