"""What is to be decided anew, and what is said then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.past_records import (
    ENCODER,
    compiled,
    embedding,
    green,
    past_of,
    records,
    red,
    verdict,
)
from worker.compiled import CompiledPolicy
from worker.past.embedding_store import EmbeddingStore
from worker.past.redecide import Plan, plan_redecisions
from worker.schema import BrakeRef, Verdict
from worker.types import Embedding

THEN = compiled()
NEW = compiled(red(), green(review=1.0))
RED, GREEN, BLUE = (embedding(colour, colour) for colour in ("red", "green", "blue"))
SAID = [verdict(name, of, THEN) for name, of in (("r", RED), ("g", GREEN), ("b", BLUE))]


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


async def planned(
    store: EmbeddingStore,
    said: list[Verdict],
    by: CompiledPolicy = NEW,
    *,
    kept: tuple[Embedding, ...] = (RED, GREEN, BLUE),
    everything: bool = False,
) -> Plan:
    past = await past_of(records(*said), records(*kept), store, metadata=True)
    return plan_redecisions(past, by, ENCODER.info, everything=everything)


def new(plan: Plan) -> list[Verdict]:
    return list(plan.verdicts(slice(None), "redecide test"))


async def test_only_where_the_action_changes_is_there_a_new_verdict(store: EmbeddingStore) -> None:
    plan = await planned(store, SAID)
    assert [verdict.request_id for verdict in new(plan)] == ["g"]
    assert (plan.unchanged, plan.done, plan.actions) == (2, 0, [("review", "allow")])


async def test_all_is_wherever_another_version_decided(store: EmbeddingStore) -> None:
    plan = await planned(store, SAID, everything=True)
    assert [verdict.request_id for verdict in new(plan)] == ["r", "g", "b"]


async def test_a_new_verdict_supersedes_and_repeats_what_is_known(store: EmbeddingStore) -> None:
    [found] = new(await planned(store, SAID))
    before = SAID[1]
    assert found.supersedes == before.verdict_id != found.verdict_id
    assert (found.item_id, found.tenant, found.metadata) == ("item-g", None, {"of": "g"})
    assert (found.decision, found.action, found.status) == ("allow", "allow", "ok")
    assert found.policy.digest == NEW.policy.digest
    assert found.model == before.model
    assert found.image == before.image
    assert (found.worker, found.cache, found.timings_ms) == (
        "redecide test",
        "none",
        {"total": 0.0},
    )


@pytest.mark.parametrize("everything", [False, True])
async def test_what_was_published_is_not_published_again(
    store: EmbeddingStore, everything: bool
) -> None:
    first = new(await planned(store, SAID, everything=everything))
    again = await planned(store, [*SAID, *first], everything=everything)
    assert (len(again.rows), again.done) == (0, len(first))


async def test_half_a_run_leaves_the_other_half(store: EmbeddingStore) -> None:
    first = new(await planned(store, SAID, everything=True))
    again = await planned(store, [*SAID, first[0]], everything=True)
    assert [verdict.verdict_id for verdict in new(again)] == [
        verdict.verdict_id for verdict in first[1:]
    ]


async def test_a_policy_that_is_rolled_back_says_again_what_it_said_and_is_no_repeat(
    store: EmbeddingStore,
) -> None:
    there = new(await planned(store, SAID))
    back = new(await planned(store, [*SAID, *there], THEN))
    assert [verdict.action for verdict in back] == ["review"]
    assert back[0].supersedes == there[0].verdict_id
    assert back[0].verdict_id not in {one.verdict_id for one in (*SAID, *there)}


async def test_a_review_that_the_brake_made_stays_where_the_policy_still_blocks(
    store: EmbeddingStore,
) -> None:
    brake = BrakeRef(share=0.5, requests=200, scope="fleet")
    braked = verdict("r", RED, THEN, brake=brake, decision="review", action="review")
    assert len((await planned(store, [braked])).rows) == 0
    milder = await planned(store, [braked], compiled(red(review=1.0, block=1.0)))
    assert milder.actions == [("review", "allow")]


async def test_what_was_embedded_in_another_precision_keeps_its_model(
    store: EmbeddingStore,
) -> None:
    half = replace(ENCODER.info, precision="fp16")
    kept = embedding("half", "green", model=half.digest)
    said = verdict("g", kept, THEN)
    said = said.model_copy(update={"model": said.model.model_copy(update={"precision": "fp16"})})
    [found] = new(await planned(store, [said], kept=(kept,)))
    assert found.model == said.model


async def test_what_cannot_be_decided_again_is_left_and_counted(store: EmbeddingStore) -> None:
    plan = await planned(store, SAID, kept=(RED, BLUE))
    assert len(plan.rows) == 0
    assert sum(plan.left_out.values()) == 1


async def test_a_list_blocks_what_was_seen_before(store: EmbeddingStore, tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("ff" * 32)
    known = {"id": "known", "file": "known.txt", "action": "block", "distance": 3}
    listing = compiled(lists=[known], folder=tmp_path)
    kept = embedding("listed", "blue", hash_="ff" * 32)
    [found] = new(await planned(store, [verdict("a", kept, THEN)], listing, kept=(kept,)))
    assert (found.action, found.listed and found.listed.id) == ("block", "known")
    assert found.image and found.image.sha256 == kept.facts.sha256
