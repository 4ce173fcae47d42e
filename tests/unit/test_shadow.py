"""What is counted of categories on trial."""

from __future__ import annotations

from tests.unit.test_feedback import said, verdict
from worker.answers import Answer, tell
from worker.schema import BrakeRef, Verdict
from worker.telemetry import REGISTRY
from worker.types import Record

RECORD = Record("requests", 0, 0, None, b"")


def counted(policy: str, enforced: str, shadow: str) -> float:
    labels = {"policy": policy, "category": "cat", "enforced": enforced, "shadow": shadow}
    return REGISTRY.get_sample_value("imagewarden_shadow_total", labels) or 0.0


def told(verdict: Verdict) -> None:
    tell(Answer((), verdict=verdict), RECORD)


def test_what_a_category_on_trial_says_is_counted_beside_what_was_decided() -> None:
    told(verdict(policy="one", dog="allow", shadow=(said("cat", "block"),)))
    told(verdict(policy="one", dog="review", shadow=(said("cat", "allow"),)))
    told(verdict(policy="one", dog="review", shadow=(said("cat", "allow"),)))
    assert counted("one", "allow", "block") == 1
    assert counted("one", "review", "allow") == 2
    assert counted("one", "review", "block") == 0


def test_each_category_on_trial_is_counted() -> None:
    told(verdict(policy="two", dog="allow", shadow=(said("cat", "allow"), said("bird", "block"))))
    assert counted("two", "allow", "allow") == 1


def test_under_the_brake_what_would_have_been_decided_is_counted() -> None:
    braked = verdict(policy="three", dog="block", shadow=(said("cat", "review"),))
    brake = BrakeRef(share=0.5, requests=400, scope="fleet")
    told(braked.model_copy(update={"decision": "review", "action": "review", "brake": brake}))
    assert counted("three", "block", "review") == 1


def test_categories_that_are_enforced_are_not_counted() -> None:
    told(verdict(policy="four", cat="block"))
    assert counted("four", "block", "block") == 0
