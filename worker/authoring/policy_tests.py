"""The tests that a policy carries: images, and what it must say of them.

Each is judged as a worker would judge a request for it, so lists, tenants and frame rules count.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from worker.judge import Judge
from worker.policy import Policy, PolicyTest
from worker.schema import CategoryVerdict, Request, Verdict
from worker.verdicts import deciding


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the policy said of a test's image. ``verdict`` is None where there was no reading it,
    and ``wrong`` then says why."""

    test: PolicyTest
    verdict: Verdict | None
    wrong: str | None = None

    @property
    def holds(self) -> bool:
        return self.verdict is not None and self.verdict.decision == self.test.expect.value

    @property
    def decided_by(self) -> CategoryVerdict | None:
        return None if self.verdict is None else deciding(self.verdict)


async def run_tests(policy: Policy, folder: Path, judge: Judge) -> AsyncIterator[Outcome]:
    """In the order of the file; ``folder`` is the policy's."""
    for number, test in enumerate(policy.tests):
        try:
            body = await asyncio.to_thread((folder / test.image).read_bytes)
        except OSError as error:
            yield Outcome(test, None, f"it cannot be read ({error.strerror})")
            continue
        request = Request(
            schema_version=1,
            request_id=f"test-{number}",
            item_id=test.image[-256:],
            tenant=test.tenant,
            data=body,
            policy=policy.id,
        )
        verdict = await judge.verdict(request)
        failed = verdict.error
        yield Outcome(test, verdict, f"{failed.code}: {failed.detail}" if failed else None)
