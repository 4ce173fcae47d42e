"""Each check of a chaos run passes what is right, and fails for one thing that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos import checks
from tests.chaos.checks import Asked, Dead, Evidence, Exit, Finding, Group, Retried, Said, findings
from tests.chaos.plan import FULL, SHORT, Kind, Scale, plan_of

RED = (("red", "block", 3.5),)
BLUE = (("red", "allow", -3.5),)


def asked(offset: int, name: str | None, key: bytes = b"item") -> Asked:
    return Asked(("requests", 0, offset), key, name)


def said(offset: int, name: str, id: str, **more: object) -> Said:
    verdict = Said(("verdicts", 0, offset), name, b"item", id, None, "block", "block", RED)
    return replace(verdict, **more)  # type: ignore[arg-type]


def undetermined(offset: int, name: str, id: str, **more: object) -> Said:
    failed = {"decision": "undetermined", "action": "review", "categories": (), "error": "e"}
    return said(offset, name, id, **failed, **more)


def group(name: str, **more: object) -> Group:
    fine = Group(name, state="Stable", owned=2, partitions=2, left="Empty", unread={0: 0, 1: 0})
    return replace(fine, **more)  # type: ignore[arg-type]


#: One request, one malformed record, and one request that took a retry.
FINE = Evidence(
    exactly_once=True,
    max_retries=3,
    sent=3,
    asked=[asked(0, "one"), asked(1, None), asked(2, "two")],
    said=[
        said(0, "one", "id-1"),
        undetermined(1, "two", "id-2", again=True),
        said(2, "two", "id-3", supersedes="id-2", categories=BLUE, decision="allow"),
    ],
    dead=[Dead(("requests", 0, 1), "not_json")],
    retried=[Retried(("retries", 0, 0), "two", "id-2")],
    exits=[Exit("slot-0.1", "killed", -9, -9), Exit("slot-0.2", "told to stop", 0, 0)],
    groups=[group("live"), group("retries")],
    planned={"worker killed": 1},
    done={"worker killed": 1},
)


def test_what_is_right_passes_every_check() -> None:
    assert {found.name: found.wrong for found in findings(FINE) if found.wrong} == {}


def test_with_at_least_once_a_repeat_is_right_even_behind_later_ones() -> None:
    run = replace(FINE, exactly_once=False, said=[*FINE.said, said(3, "one", "id-1")])
    assert [found.name for found in findings(run) if found.wrong] == []


def test_with_at_least_once_a_promise_is_void_where_the_request_is_judged_anew() -> None:
    promise = undetermined(0, "one", "id-1", again=True)
    run = replace(FINE, exactly_once=False, said=[promise, said(1, "one", "id-2")], retried=[])
    assert not checks.promised(run).wrong
    assert checks.promised(replace(run, exactly_once=True)).wrong


def test_a_retry_of_a_retry_is_right() -> None:
    chain = [
        undetermined(0, "one", "id-1", again=True),
        undetermined(1, "one", "id-2", supersedes="id-1", again=True),
        said(2, "one", "id-3", supersedes="id-2"),
    ]
    run = replace(FINE, said=chain)
    assert not checks.superseding(run).wrong


WRONG: dict[str, tuple[Callable[[Evidence], Finding], dict[str, object]]] = {
    "a request that came twice": (checks.published, {"asked": [asked(0, "one"), asked(1, "one")]}),
    "a record that was not published": (checks.published, {"sent": 4}),
    "a request without an answer": (checks.lost, {"said": [said(0, "one", "id-1")]}),
    "a malformed record without an answer": (checks.lost, {"dead": []}),
    "a verdict on what nobody asked": (checks.unasked, {"said": [said(0, "three", "id-1")]}),
    "a dead letter of no record": (
        checks.unasked,
        {"dead": [Dead(("requests", 0, 1), "not_json"), Dead(("requests", 0, 9), "not_json")]},
    ),
    "a good record among the dead letters": (
        checks.dead_letters,
        {"dead": [Dead(("requests", 0, 1), "not_json"), Dead(("requests", 0, 0), "not_json")]},
    ),
    "a malformed record that is no dead letter": (checks.dead_letters, {"dead": []}),
    "a dead letter twice": (
        checks.dead_letters,
        {"dead": [Dead(("requests", 0, 1), "not_json"), Dead(("requests", 0, 1), "not_json")]},
    ),
    "more poison than deaths": (
        checks.dead_letters,
        {
            "dead": [
                Dead(("requests", 0, 1), "not_json"),
                Dead(("requests", 0, 0), "poison"),
                Dead(("requests", 0, 2), "poison"),
            ]
        },
    ),
    "an equal id with another decision": (
        checks.equal_ids,
        {"said": [said(0, "one", "id"), said(1, "one", "id", decision="allow")]},
    ),
    "an equal id with another action": (
        checks.equal_ids,
        {"said": [said(0, "one", "id"), said(1, "one", "id", action="allow")]},
    ),
    "an equal id on another request": (
        checks.equal_ids,
        {"said": [said(0, "one", "id"), said(1, "two", "id")]},
    ),
    "an equal id with another category's action": (
        checks.equal_ids,
        {"said": [said(0, "one", "id"), said(1, "one", "id", categories=BLUE)]},
    ),
    "an equal id with a category less": (
        checks.equal_ids,
        {"said": [said(0, "one", "id"), said(1, "one", "id", categories=())]},
    ),
    "an equal id with another margin": (
        checks.equal_ids,
        {
            "said": [
                said(0, "one", "id"),
                said(1, "one", "id", categories=(("red", "block", 3.5 + 1e-6),)),
            ]
        },
    ),
    "an equal id of the pocket model with quite another margin": (
        checks.equal_ids,
        {
            "said": [
                said(0, "one", "id", model="pocket"),
                said(1, "one", "id", model="pocket", categories=(("red", "block", 3.6),)),
            ]
        },
    ),
    "a later request answered first": (
        checks.order,
        {"said": [said(0, "two", "id-2"), said(1, "one", "id-1")]},
    ),
    "a later request answered first, with at least once": (
        checks.order,
        {"exactly_once": False, "said": [said(0, "two", "id-2"), said(1, "one", "id-1")]},
    ),
    "an answer that goes back, with exactly once": (
        checks.order,
        {"said": [said(0, "one", "id-1"), said(1, "two", "id-2"), said(2, "one", "id-1")]},
    ),
    "superseding what was never said": (
        checks.superseding,
        {"said": [said(0, "one", "id-1", supersedes="id-0")]},
    ),
    "superseding another request's verdict": (
        checks.superseding,
        {"said": [said(0, "one", "id-1"), said(1, "two", "id-2", supersedes="id-1")]},
    ),
    "one retry answered twice, with exactly once": (
        checks.superseding,
        {
            "said": [
                undetermined(0, "one", "id-1"),
                said(1, "one", "id-2", supersedes="id-1"),
                said(2, "one", "id-3", supersedes="id-1"),
            ]
        },
    ),
    "more verdicts than retries": (
        checks.superseding,
        {
            "max_retries": 1,
            "said": [
                undetermined(0, "one", "id-1"),
                undetermined(1, "one", "id-2", supersedes="id-1"),
                said(2, "one", "id-3", supersedes="id-2"),
            ],
        },
    ),
    "a promised retry that is none": (checks.promised, {"retried": []}),
    "a promised retry that is none, with at least once": (
        checks.promised,
        {
            "exactly_once": False,
            "said": [undetermined(0, "one", "id-1", again=True)],
            "retried": [],
        },
    ),
    "a request with two first verdicts": (
        checks.once,
        {"said": [*FINE.said, said(3, "one", "id-1")]},
    ),
    "a request with a verdict and a dead letter": (
        checks.once,
        {"dead": [*FINE.dead, Dead(("requests", 0, 0), "poison")]},
    ),
    "a request with neither": (checks.once, {"said": FINE.said[1:]}),
    "a malformed record that is two dead letters": (checks.once, {"dead": [*FINE.dead] * 2}),
    "a record unread": (checks.unread, {"groups": [group("live", unread={0: 0, 1: 3})]}),
    "a partition not looked at": (checks.unread, {"groups": [group("live", unread={0: 0})]}),
    "no group looked at": (checks.unread, {"groups": []}),
    "a partition without an owner": (checks.groups, {"groups": [group("live", owned=1)]}),
    "a group that rebalances for ever": (
        checks.groups,
        {"groups": [group("live", state="PreparingRebalance")]},
    ),
    "a member that did not leave": (checks.groups, {"groups": [group("live", left="Stable")]}),
    "a group that stood still": (checks.groups, {"longest_pause_seconds": 61.0}),
    "a worker that left with an error": (
        checks.exits,
        {"exits": [Exit("slot-0.1", "told to stop", 0, 70)]},
    ),
    "a worker that ended by itself": (
        checks.exits,
        {"exits": [Exit("slot-0.1", "by itself", None, 0)]},
    ),
    "a fault that was not done": (checks.done, {"done": {}}),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_is(what: str) -> None:
    check, change = WRONG[what]
    assert not check(FINE).wrong
    assert check(replace(FINE, **change)).wrong  # type: ignore[arg-type]


def test_every_check_is_shown_to_fail() -> None:
    assert {check(FINE).name for check, _ in WRONG.values()} == {
        found.name for found in findings(FINE)
    }


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("scale", [FULL, SHORT], ids=["full", "short"])
def test_a_plan_is_the_same_for_the_same_seed_and_another_for_another(scale: Scale) -> None:
    assert plan_of(scale, 1) == plan_of(scale, 1)
    assert plan_of(scale, 1) != plan_of(scale, 2)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_as_many_faults_as_it_should_within_its_time(seed: int) -> None:
    plan = plan_of(FULL, seed)
    assert Counter(fault.kind for fault in plan) == {
        Kind.KILL_WORKER: 20,
        Kind.LEAVE: 10,
        Kind.FREEZE_WORKER: 2,
        Kind.KILL_DECODER: 4,
        Kind.KILL_BROKER: 3,
        Kind.KILL_REDIS: 2,
        Kind.FREEZE_REDIS: 2,
        Kind.REFUSE_IMAGES: 2,
        Kind.STALL_IMAGES: 2,
        Kind.DROP_IMAGES: 2,
    }
    assert list(plan) == sorted(plan)
    assert all(0 <= fault.at_seconds <= FULL.seconds for fault in plan)


def test_a_plan_spares_no_slot_and_no_broker() -> None:
    plan = plan_of(FULL, 1)
    killed = {fault.target for fault in plan if fault.kind is Kind.KILL_WORKER}
    assert killed == set(range(FULL.slots + FULL.pocket))
    assert {fault.target for fault in plan if fault.kind is Kind.KILL_BROKER} == {0, 1, 2}
