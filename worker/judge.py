"""From a request to a verdict: which policy, what is seen, what that comes to.

The heart of the main path, on its own because the command line judges images too, with no topic in
sight.
"""

from __future__ import annotations

import time
from uuid import UUID

from worker import telemetry
from worker.brake import Brake
from worker.compiled import CompiledPolicy
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.examine import Examiner
from worker.examined import Outcome, Recognised
from worker.reload import PolicyStore
from worker.schema import Request, Verdict, now
from worker.score import decide
from worker.types import ModelInfo
from worker.verdicts import braked, build_verdict, listed_verdict, undetermined_verdict

_WORKED = telemetry.STAGE_SECONDS.labels(Stage.SCORE.value)


class Judge:
    """``worker`` is named in the verdicts; ``priority`` is that of its images, 0 the highest.
    Without a ``brake``, no policy's ``max_block_rate`` is heeded."""

    def __init__(
        self,
        *,
        examiner: Examiner,
        policies: PolicyStore,
        model: ModelInfo,
        worker: str,
        priority: int = 0,
        brake: Brake | None = None,
    ) -> None:
        self._examiner = examiner
        self._policies = policies
        self._model = model
        self._worker = worker
        self._priority = priority
        self._brake = brake

    async def verdict(
        self, request: Request, *, attempts: int = 0, supersedes: UUID | None = None
    ) -> Verdict:
        """Always one: of an image that cannot be examined it says ``undetermined``.

        ``attempts`` were made before, and led to the verdict it ``supersedes``.
        """
        started = time.perf_counter()
        # Taken once: an edit that is applied meanwhile must not judge half of it
        policy = self._policies.current(None)
        try:
            policy = self._policy(request)
            outcome = await self._examine(request, policy)
        except Unexaminable as failure:
            telemetry.ERRORS.labels(failure.stage.value, failure.code.value).inc()
            verdict = undetermined_verdict(
                request,
                failure,
                policy.policy,
                self._model,
                self._worker,
                _ms_since(started),
                supersedes,
                attempts,
            )
        else:
            verdict = self._judged(request, outcome, policy, started, supersedes)
        brake = self._brake and self._brake.count(
            policy.policy, request.tenant, request.request_id, blocked=verdict.action == "block"
        )
        return braked(verdict, brake, self._model) if brake else verdict

    def _judged(
        self,
        request: Request,
        outcome: Outcome,
        policy: CompiledPolicy,
        started: float,
        supersedes: UUID | None,
    ) -> Verdict:
        if isinstance(outcome, Recognised):
            return listed_verdict(
                request,
                outcome,
                policy.policy,
                self._model,
                self._worker,
                _ms_since(started),
                supersedes,
            )
        scoring = time.perf_counter()
        seen = outcome.embedding
        decided = decide(policy, seen.rows, request.tenant, seen.facts.rows)
        _WORKED.observe(time.perf_counter() - scoring)
        return build_verdict(
            request,
            outcome,
            decided,
            policy.policy,
            self._model,
            self._worker,
            _ms_since(started),
            supersedes,
        )

    def _policy(self, request: Request) -> CompiledPolicy:
        try:
            return self._policies.current(request.policy)
        except KeyError:
            raise Unexaminable(
                ErrorCode.UNKNOWN_POLICY, Stage.POLICY, "no loaded policy has the id it names"
            ) from None

    async def _examine(self, request: Request, policy: CompiledPolicy) -> Outcome:
        if request.deadline is not None and request.deadline <= now():
            raise Unexaminable(
                ErrorCode.DEADLINE_EXCEEDED, Stage.POLICY, "the deadline passed before work began"
            )
        plan = policy.policy.plan
        if request.url is not None:
            return await self._examiner.by_url(
                request.url,
                plan,
                sha256=request.sha256,
                priority=self._priority,
                lists=policy.lists,
            )
        return await self._examiner.by_content(
            request.data or b"",
            plan,
            sha256=request.sha256,
            priority=self._priority,
            lists=policy.lists,
        )


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
