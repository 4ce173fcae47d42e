"""A policy's decisions on the past are those of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.past_records import ENCODER, compiled, embedding, green, past_of, records, red, verdict
from tests.policy_factory import category
from worker.compiled import CompiledPolicy
from worker.decide_many import ACTIONS
from worker.errors import ErrorCode
from worker.past.embedding_store import NOWHERE, EmbeddingStore
from worker.past.join import Past
from worker.past.replay import replay, said
from worker.schema import BrakeRef
from worker.score import decide
from worker.types import Embedding, FramePlan

THEN = compiled()
IMAGES = [
    embedding(" ".join(frames), *frames)
    for frames in (
        ("red",),
        ("green",),
        ("blue",),
        ("white",),
        ("black", "red"),
        ("green", "red", "green"),
        ("blue", "green", "white", "black"),
    )
]
TENANTS = (None, "strict", "lax")

POLICIES: dict[str, dict[str, Any]] = {
    "as it was": {},
    "uncalibrated may not block": {"categories": [red(block_uncalibrated=False), green()]},
    "on trial and off": {"categories": [red(mode="shadow"), green(), category("x", mode="off")]},
    "all on trial": {"categories": [red(mode="shadow")]},
    "tenants": {
        "categories": [red(), green()],
        "tenants": {"strict": {"green": {"review": 0.01}}, "lax": {"red": {"block": 1.0}}},
    },
    "frames": {"categories": [red(frames={"at_least": 2}), green(frames={"at_least": 3})]},
    "exceptions": {"categories": [red(exceptions=["a red poster"]), green(aggregate="max")]},
    "equally severe": {"categories": [red(), category("also", prompts=["red"], block=0.5,
                                                      block_uncalibrated=True)]},
}  # fmt: skip


@pytest.fixture
def store() -> Iterator[EmbeddingStore]:
    with EmbeddingStore() as store:
        yield store


async def the_past(store: EmbeddingStore) -> tuple[Past, list[tuple[Embedding, str | None]]]:
    """Every image under every tenant."""
    seen = [(image, tenant) for tenant in TENANTS for image in IMAGES]
    verdicts = [
        verdict(str(n), image, THEN, tenant=tenant) for n, (image, tenant) in enumerate(seen)
    ]
    return await past_of(records(*verdicts), records(*IMAGES), store), seen


@pytest.mark.parametrize("keys", POLICIES.values(), ids=POLICIES.keys())
async def test_it_decides_as_a_worker_does(keys: dict[str, Any], store: EmbeddingStore) -> None:
    given = dict(keys)
    policy = compiled(*given.pop("categories", ()), **given)
    past, seen = await the_past(store)
    found = replay(past, policy, ENCODER.info)
    assert found.rows.tolist() == list(range(len(seen)))
    assert found.left_out == {}
    for row, (image, tenant) in enumerate(seen):
        decided = decide(policy, image.rows, tenant, image.facts.rows)
        by = found.decisions.decided_by[row]
        assert ACTIONS[found.decisions.severity[row]] is decided.decision
        assert (found.decisions.names[by] if by >= 0 else None) == decided.decided_by


async def test_what_was_said_is_what_the_verdicts_say(store: EmbeddingStore) -> None:
    past, _ = await the_past(store)
    found = replay(past, THEN, ENCODER.info)
    then = said(past, found.rows)
    assert then.severity.tolist() == found.decisions.severity.tolist()
    names = [[*each.names, None] for each in (then, found.decisions)]
    assert [names[0][by] for by in then.decided_by] == [
        names[1][by] for by in found.decisions.decided_by
    ]


async def test_a_block_that_the_brake_made_a_review_counts_as_a_block(
    store: EmbeddingStore,
) -> None:
    brake = BrakeRef(share=0.5, requests=200, scope="fleet")
    braked = verdict("a", IMAGES[0], THEN, action="review", brake=brake)
    past = await past_of(records(braked), records(*IMAGES), store)
    assert said(past, replay(past, THEN, ENCODER.info).rows).severity.tolist() == [2]


async def test_an_image_that_was_seen_often_is_decided_for_each(store: EmbeddingStore) -> None:
    said = [verdict(str(n), IMAGES[n % 2], THEN) for n in range(10)]
    past = await past_of(records(*said), records(*IMAGES), store)
    found = replay(past, THEN, ENCODER.info)
    assert found.decisions.severity.tolist() == [2, 1] * 5


async def test_what_cannot_be_decided_again_is_counted_by_the_reason(store: EmbeddingStore) -> None:
    other_model = "sha256:" + "5" * 64
    padded = embedding("padded", "red", plan=FramePlan(views="pad"))
    gone = embedding("gone", "red")
    elsewhere = verdict("other model", IMAGES[1], THEN)
    said = [
        verdict("again", IMAGES[0], THEN),
        verdict("error", ErrorCode.HOST_UNAVAILABLE, THEN),
        verdict("gone", gone, THEN),
        verdict("padded", padded, THEN),
        elsewhere.model_copy(
            update={"model": elsewhere.model.model_copy(update={"weights_digest": other_model})}
        ),
    ]
    past = await past_of(records(*said), records(*IMAGES, padded), store)
    found = replay(past, THEN, ENCODER.info)
    assert past.verdicts.take(found.rows)["request_id"].to_pylist() == ["again"]
    assert found.left_out == {
        "could not be examined then (host_unavailable)": 1,
        "have no embedding any more (expired, forgotten or never kept)": 1,
        "were embedded by another frame plan (max_frames, views)": 1,
        "were judged by another model (fake)": 1,
    }


async def test_another_precision_of_the_same_model_is_comparable(store: EmbeddingStore) -> None:
    half = replace(ENCODER.info, precision="fp16")
    kept = embedding("half", "red", model=half.digest)
    said = verdict("a", kept, THEN)
    said = said.model_copy(update={"model": said.model.model_copy(update={"precision": "fp16"})})
    past = await past_of(records(said), records(kept), store)
    assert replay(past, THEN, ENCODER.info).decisions.severity.tolist() == [2]


# ---------------------------------------------------------------- lists


def listing(folder: Path, *hashes: str, action: str = "block") -> CompiledPolicy:
    """Blocks what is within three bits of these, unless ``action`` says otherwise."""
    (folder / "known.txt").write_text("\n".join(hashes))
    known = {"id": "known", "file": "known.txt", "action": action, "distance": 3}
    return compiled(lists=[known], folder=folder)


async def test_an_image_on_a_list_is_settled_by_it(store: EmbeddingStore, tmp_path: Path) -> None:
    near, far = "ff" * 31 + "fe", "00" * 32
    images = [embedding("near", "blue", hash_=near), embedding("far", "blue", hash_=far)]
    said = [verdict(image.facts.sha256[:4], image, THEN) for image in images]
    past = await past_of(records(*said), records(*images), store)
    found = replay(past, listing(tmp_path, "ff" * 32), ENCODER.info)
    assert found.decisions.severity.tolist() == [2, 0]
    assert found.decisions.names[found.decisions.decided_by[0]] == "list known"


async def test_a_list_allows_no_animation_for_its_first_frame(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    still = embedding("still", "red", hash_="ff" * 32)
    moving = embedding("moving", "blue", "red", hash_="ff" * 32)
    said = [verdict(image.facts.sha256[:4], image, THEN) for image in (still, moving)]
    past = await past_of(records(*said), records(still, moving), store)
    found = replay(past, listing(tmp_path, "ff" * 32, action="allow"), ENCODER.info)
    assert found.decisions.severity.tolist() == [0, 2]


async def test_a_list_needs_no_embedding(store: EmbeddingStore, tmp_path: Path) -> None:
    image = embedding("listed", "blue", hash_="ff" * 32)
    past = await past_of(records(verdict("a", image, THEN)), [], store)
    found = replay(past, listing(tmp_path, "ff" * 32), ENCODER.info)
    assert (found.places.tolist(), found.decisions.severity.tolist()) == ([NOWHERE], [2])
