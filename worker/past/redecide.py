"""New verdicts on what was decided before, from the embeddings that were kept: no fetch, no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from worker.compiled import CompiledPolicy
from worker.decide_many import ACTIONS
from worker.examined import Examined, Recognised
from worker.past.embedding_store import NOWHERE, Indices
from worker.past.join import Past
from worker.past.replay import replay
from worker.schema import Request, Verdict, verdict_id
from worker.score import decide
from worker.types import ModelInfo
from worker.verdicts import build_verdict, listed_verdict

_BLOCK = ACTIONS.index(ACTIONS[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """``rows`` of ``past.verdicts`` are to be superseded, by what the embeddings at ``places`` come
    to. ``left_out`` counts what cannot be decided again, ``done`` what the policy decided already,
    ``unchanged`` what it would decide alike."""

    past: Past
    compiled: CompiledPolicy
    model: ModelInfo
    rows: Indices
    places: Indices
    actions: Sequence[tuple[str, str]]  #: of each row, before and after
    done: int
    unchanged: int
    left_out: Mapping[str, int]

    def superseded(self) -> dict[str, str]:
        """By request id, the verdict in force."""
        said = self.past.verdicts.select(["request_id", "verdict_id"]).take(self.rows)
        return dict(zip(*(column.to_pylist() for column in said.columns), strict=True))

    def verdicts(self, span: slice, worker: str) -> Iterator[Verdict]:
        """The new ones of some of the rows, in the name of ``worker``."""
        said = self.past.verdicts.take(self.rows[span]).to_pylist()
        for before, place in zip(said, self.places[span].tolist(), strict=True):
            yield _redecided(before, self.past, place, self.compiled, self.model, worker)


def plan_redecisions(
    past: Past, compiled: CompiledPolicy, model: ModelInfo, *, everything: bool
) -> Plan:
    """What to publish: where the action changes or, with ``everything``, wherever another version
    of the policy decided. What the policy decided already is left, so that a plan made again
    after half of it was published has the other half; a block that the brake made a review is no
    change from a block. What a list settles without an embedding is left out: too little is kept
    of it to say anew."""
    found = replay(past, compiled, model)
    known = found.places != NOWHERE
    verdicts = past.verdicts.take(found.rows[known])
    actions = [action.value for action in ACTIONS]
    before = verdicts["action"].cast(pa.string()).to_pylist()
    after = [actions[severity] for severity in found.decisions.severity[known].tolist()]
    digests = np.array(verdicts["policy_digest"].cast(pa.string()).to_pylist(), dtype=object)
    done = digests == compiled.policy.digest
    braked = np.asarray(verdicts["braked"], dtype=bool)
    same = np.array([was == now for was, now in zip(before, after, strict=True)], dtype=bool)
    same |= braked & (found.decisions.severity[known] == _BLOCK)
    chosen = ~done if everything else ~done & ~same
    left_out = dict(found.left_out)
    if unknown := int((~known).sum()):
        left_out["are on a list, but too little is kept of them"] = unknown
    return Plan(
        past=past,
        compiled=compiled,
        model=model,
        rows=found.rows[known][chosen],
        places=found.places[known][chosen],
        actions=[(before[at], after[at]) for at in np.flatnonzero(chosen).tolist()],
        done=int(done.sum()),
        unchanged=int((~chosen & ~done).sum()),
        left_out=left_out,
    )


def _redecided(
    before: Mapping[str, Any],
    past: Past,
    place: int,
    compiled: CompiledPolicy,
    model: ModelInfo,
    worker: str,
) -> Verdict:
    """``cache`` is ``none`` and ``total`` 0: no cache was asked, and nothing was waited for."""
    embedding = past.embeddings[place]
    # What is known of the request; its image is behind us
    request = Request.model_construct(
        schema_version=1,
        request_id=before["request_id"],
        item_id=before["item_id"],
        tenant=before["tenant"],
        data=b"",
        metadata=json.loads(before["metadata"] or "{}"),
    )
    # The model that made the embedding, in the precision it had then
    model = replace(model, name=before["model"], precision=before["precision"])
    supersedes = UUID(before["verdict_id"])
    policy, facts = compiled.policy, embedding.facts
    hash_ = before["perceptual_hash"] or facts.perceptual_hash
    if listed := compiled.lists.match(hash_, facts.frames):
        verdict = listed_verdict(
            request, Recognised(listed, facts, "none"), policy, model, worker, 0.0, supersedes
        )
    else:
        decided = decide(compiled, embedding.rows, request.tenant, facts.rows)
        examined = Examined(embedding, "none")
        verdict = build_verdict(request, examined, decided, policy, model, worker, 0.0, supersedes)
    # A policy that is rolled back says again what it said before, and must not be taken for a
    # repeat of that: what it supersedes is part of the id
    id_ = verdict_id(
        request_id=verdict.request_id,
        policy_digest=policy.digest,
        model_digest=model.digest,
        seen=f"{facts.sha256} after {supersedes}",
        decision=verdict.decision,
        action=verdict.action,
    )
    return verdict.model_copy(update={"verdict_id": id_})
