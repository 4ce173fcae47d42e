"""A policy edited on disk decides from then on, and what was seen is not looked at again."""

from __future__ import annotations

from collections import Counter

from tests.e2e.scene import (
    RED_AND_GREEN,
    eventually,
    fake_worker,
    gallery,
    logged,
    metric,
    requests_of,
    verdicts_on,
    write_policy,
)
from tests.policy_factory import category
from worker.demo.stage import Exchange, Stage, Worker

_RED, _ = RED_AND_GREEN
_BLUE = category("blue", prompts=["blue"], contrast=["red", "green", "white"])


async def decisions(exchange: Exchange, on: Stage, act: str) -> Counter[tuple[str, int]]:
    """What was decided on the gallery, and by which version of the policy."""
    verdicts = await verdicts_on(exchange, requests_of(on, on.images.replies, act))
    return Counter((verdict.decision, verdict.policy.version) for verdict in verdicts.values())


def in_force(worker: Worker, version: int) -> bool:
    return metric(worker, "imagewarden_policy_info", policy="test", version=str(version)) == 1


async def test_an_edit_changes_the_verdicts_and_fetches_nothing_again(on: Stage) -> None:
    on.images.replies |= gallery(30)
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            before = await decisions(exchange, on, "before")
            write_policy(on.policy, _RED, _BLUE, version=2)
            await eventually(lambda: in_force(worker, 2), "the edit is applied")
            after = await decisions(exchange, on, "after")
            assert metric(worker, "imagewarden_policy_info") == 1
    assert before == {("block", 1): 10, ("review", 1): 10, ("allow", 1): 10}
    assert after == {("block", 2): 10, ("allow", 2): 10, ("review", 2): 10}
    assert on.images.hits == dict.fromkeys(on.images.replies, 1)


async def test_a_broken_edit_is_refused_and_the_last_good_policy_goes_on(on: Stage) -> None:
    on.images.replies |= gallery(3)
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            write_policy(on.policy, category("red", reveiw=0.5), version=2)
            await eventually(lambda: logged(worker, "policy_refused"), "the edit is refused")
            [refused] = worker.lines("policy_refused")
            assert any("reveiw" in problem for problem in refused["problems"])
            assert metric(worker, "imagewarden_policy_stale", policy="test") == 1
            assert metric(worker, "imagewarden_policy_reloads_total", outcome="refused") == 1
            meanwhile = await decisions(exchange, on, "meanwhile")

            write_policy(on.policy, _RED, version=3)
            await eventually(lambda: in_force(worker, 3), "the repaired policy is applied")
            assert metric(worker, "imagewarden_policy_stale", policy="test") == 0
            repaired = await decisions(exchange, on, "repaired")
    assert meanwhile == {("block", 1): 1, ("review", 1): 1, ("allow", 1): 1}
    assert repaired == {("block", 3): 1, ("allow", 3): 2}
