"""What must be true of a run, checked on what was asked and what was answered. Pure.

Each check gives a ``Finding``: how many things it looked at, and a sentence for each that is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from worker.errors import MalformedReason

T = TypeVar("T")

POISON = MalformedReason.POISON.value

#: By model; those of others may not differ at all. Embeddings of this one may, in the last bit of a
#: float16, between batches of different sizes, and its logit scale multiplies that.
MARGIN_TOLERANCE = {"pocket": 1e-3}

#: Of a group that is not wedged: two sessions, and a broker's failover.
LONGEST_PAUSE_SECONDS = 60.0

Place = tuple[str, int, int]  #: topic, partition, offset


@dataclass(frozen=True, slots=True)
class Asked:
    """A record of the request topic; ``request_id`` is None where it is malformed."""

    place: Place
    key: bytes | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Said:
    """A verdict. ``categories`` are those of id, action and margin; ``again`` says that it promises
    a retry."""

    place: Place
    request_id: str
    key: bytes
    verdict_id: str
    supersedes: str | None
    decision: str
    action: str
    categories: tuple[tuple[str, str, float], ...] = ()
    error: str | None = None
    again: bool = False
    model: str = ""

    @property
    def first(self) -> bool:
        """On the request itself, and not on a retry of it."""
        return self.supersedes is None


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter; ``source`` is the place of the record that it is about."""

    source: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Retried:
    """A record of the retry topic."""

    place: Place
    request_id: str
    supersedes: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended: ``expected`` is the code it should have ended with, None where it should
    not have ended."""

    worker: str
    how: str
    expected: int | None
    code: int


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group at the end: ``state`` and how many partitions have an owner while the fleet
    is up, ``left`` the state once it is gone, ``unread`` by partition."""

    name: str
    state: str
    owned: int
    partitions: int
    left: str
    unread: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a run in one delivery mode, each topic in the order of its offsets.

    ``longest_pause_seconds`` is for how long no commit of the live group moved, while requests
    came. ``planned`` and ``done`` count faults by kind.
    """

    exactly_once: bool
    max_retries: int
    asked: Sequence[Asked] = ()
    said: Sequence[Said] = ()
    dead: Sequence[Dead] = ()
    retried: Sequence[Retried] = ()
    exits: Sequence[Exit] = ()
    groups: Sequence[Group] = ()
    longest_pause_seconds: float = 0.0
    planned: Mapping[str, int] = field(default_factory=dict)
    done: Mapping[str, int] = field(default_factory=dict)
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    counted: str
    wrong: Sequence[str] = ()


def findings(evidence: Evidence) -> list[Finding]:
    """Of all checks."""
    checks = [
        published,
        lost,
        unasked,
        dead_letters,
        equal_ids,
        order,
        superseding,
        promised,
        *([once] if evidence.exactly_once else []),
        unread,
        groups,
        exits,
        done,
    ]
    return [check(evidence) for check in checks]


# ---------------------------------------------------------------- of what was asked


def published(run: Evidence) -> Finding:
    """The request topic has what was sent, once: else the others check something else."""
    ids = Counter(asked.request_id for asked in run.asked if asked.request_id is not None)
    wrong = [
        f"{name} is {count} times on the request topic" for name, count in ids.items() if count > 1
    ]
    if len(run.asked) != run.sent:
        wrong.append(f"{run.sent} records were sent, {len(run.asked)} are on the request topic")
    return Finding("requests on the topic, each once", f"{len(run.asked)} records", wrong)


def lost(run: Evidence) -> Finding:
    """Each record has an answer: a verdict or a dead letter, a malformed one a dead letter."""
    answered = {said.request_id for said in run.said}
    buried = {dead.source for dead in run.dead}
    wrong = [
        f"{_named(asked)} has no verdict and no dead letter"
        for asked in run.asked
        if asked.place not in buried and asked.request_id not in answered
    ]
    return Finding("lost", f"{len(run.asked)} records", wrong)


def unasked(run: Evidence) -> Finding:
    """Nothing is answered that nobody asked."""
    names = {asked.request_id for asked in run.asked}
    places = {asked.place for asked in run.asked} | {retried.place for retried in run.retried}
    strangers = sorted({said.request_id for said in run.said} - names)
    wrong = [f"{name} was never asked, and has a verdict" for name in strangers]
    wrong += [
        f"there is no record at {dead.source}, and it is a dead letter"
        for dead in run.dead
        if dead.source not in places
    ]
    return Finding("answered unasked", f"{len(run.said) + len(run.dead)} answers", wrong)


def dead_letters(run: Evidence) -> Finding:
    """Of malformed records, and of those a process died with while they were tried alone: no more
    of these than processes died."""
    malformed = {asked.place for asked in run.asked if asked.request_id is None}
    poison = {dead.source for dead in run.dead if dead.reason == POISON}
    others = Counter(dead.source for dead in run.dead if dead.reason != POISON)
    wrong = [
        f"{place} is a dead letter and was no malformed record"
        for place in others.keys() - malformed
    ]
    wrong += [
        f"{place} was malformed and is no dead letter"
        for place in malformed - others.keys() - poison
    ]
    if run.exactly_once:
        wrong += [
            f"{place} is {count} dead letters" for place, count in others.items() if count > 1
        ]
    deaths = sum(exit.code != 0 for exit in run.exits)
    if len(poison) > deaths:
        wrong.append(f"{len(poison)} records are poison, and only {deaths} workers died")
    counted = f"{len(others)} malformed, {len(poison)} poison, {deaths} deaths"
    return Finding("dead letters", counted, wrong)


# ---------------------------------------------------------------- of what was answered


def equal_ids(run: Evidence) -> Finding:
    """Equal ``verdict_id``, equal decision."""
    wrong = []
    repeats, deviation = 0, 0.0
    for verdict_id, same in _by(run.said, lambda said: said.verdict_id).items():
        repeats += len(same) - 1
        if len({(said.request_id, said.decision, said.action) for said in same}) > 1:
            wrong.append(f"verdicts {verdict_id} have different decisions")
        elif len({tuple((id, action) for id, action, _ in said.categories) for said in same}) > 1:
            wrong.append(f"verdicts {verdict_id} have categories with different actions")
        else:
            for margins in zip(*([m for _, _, m in said.categories] for said in same), strict=True):
                deviation = max(deviation, max(margins) - min(margins))
                if max(margins) - min(margins) > MARGIN_TOLERANCE.get(same[0].model, 0.0):
                    wrong.append(f"verdicts {verdict_id} have margins {sorted(set(margins))}")
    counted = f"{len(run.said)} verdicts, {repeats} of them repeats"
    return Finding(
        "equal verdict ids, equal decisions",
        f"{counted}; margins differ by {deviation:.2g} at most",
        wrong,
    )


def order(run: Evidence) -> Finding:
    """The first verdicts of a key come in the order of its requests. At least once, a repeat may
    come later; exactly once, there is none."""
    asked_at = {asked.request_id: asked.place for asked in run.asked}
    wrong = []
    of_keys = _by((said for said in run.said if said.first), lambda said: said.key)
    for key, said in of_keys.items():
        names = [each.request_id for each in said if each.request_id in asked_at]
        if not run.exactly_once:
            names = list(dict.fromkeys(names))
        places = [asked_at[name] for name in names]
        wrong += [
            f"{key!r}: {names[after + 1]} comes after {names[after]}, and was asked before it"
            for after, (one, next_one) in enumerate(pairwise(places))
            if next_one <= one
        ]
    several = sum(len({each.request_id for each in said}) > 1 for said in of_keys.values())
    return Finding("order within an item", f"{len(of_keys)} items, {several} with several", wrong)


def superseding(run: Evidence) -> Finding:
    """A verdict on a retry supersedes one that came before it, on the same request. Exactly once,
    these are a chain, no longer than there may be retries."""
    wrong = []
    superseded = 0
    for name, chain in _by(run.said, lambda said: said.request_id).items():
        before: list[str] = []
        for said in chain:
            if said.supersedes is not None:
                superseded += 1
                known = before[-1:] if run.exactly_once else before
                if said.supersedes not in known:
                    wrong.append(
                        f"{name}: {said.verdict_id} supersedes {said.supersedes}, which "
                        "is not what was said before it"
                    )
            before.append(said.verdict_id)
        if run.exactly_once and len(chain) > 1 + run.max_retries:
            wrong.append(
                f"{name} has {len(chain)} verdicts, with {run.max_retries} retries at most"
            )
    return Finding("verdicts that supersede", f"{superseded} verdicts", wrong)


def promised(run: Evidence) -> Finding:
    """A verdict that promises a retry has one on the retry topic; or, at least once, it was the
    last thing that its worker did, and the request was judged anew."""
    retries = {(retried.request_id, retried.supersedes) for retried in run.retried}
    last = {said.request_id: said for said in run.said}
    promises = {(said.request_id, said.verdict_id) for said in run.said if said.again}
    wrong = [
        f"{name}: verdict {id} promises a retry, and there is none"
        for name, id in sorted(promises - retries)
        if run.exactly_once or last[name].verdict_id == id
    ]
    return Finding("promised retries", f"{len(promises)} promises", wrong)


def once(run: Evidence) -> Finding:
    """Exactly one answer to each record: a verdict, not counting those that supersede it, or a dead
    letter."""
    first = Counter(said.request_id for said in run.said if said.first)
    buried = Counter(dead.source for dead in run.dead)
    wrong = []
    for asked in run.asked:
        verdicts = first[asked.request_id] if asked.request_id is not None else 0
        if verdicts + buried[asked.place] != 1:
            wrong.append(
                f"{_named(asked)} has {verdicts} verdicts and {buried[asked.place]} dead letters"
            )
    return Finding(
        "exactly once, as readers of committed data see it", f"{len(run.asked)} records", wrong
    )


# ---------------------------------------------------------------- of groups, workers and faults


def unread(run: Evidence) -> Finding:
    """Lag 0: nothing that may be read lies behind what is committed."""
    wrong = []
    for group in run.groups:
        wrong += [
            f"{group.name}: {count} records of partition {partition} are unread"
            for partition, count in sorted(group.unread.items())
            if count
        ]
        if len(group.unread) != group.partitions:
            wrong.append(f"{group.name}: {len(group.unread)} of {group.partitions} were looked at")
    partitions = sum(group.partitions for group in run.groups)
    behind = sum(sum(group.unread.values()) for group in run.groups)
    told = f"{behind} in {partitions} partitions of {len(run.groups)} groups"
    return Finding("final lag", told, wrong if run.groups else ["no group was looked at"])


def groups(run: Evidence) -> Finding:
    """No group is wedged: commits move on, every partition has an owner while the fleet is up, and
    at the end all members have left."""
    wrong = []
    for group in run.groups:
        if group.state != "Stable" or group.owned != group.partitions:
            wrong.append(
                f"{group.name} is {group.state} with the fleet up, and {group.owned} of "
                f"{group.partitions} partitions have an owner"
            )
        if group.left != "Empty":
            wrong.append(f"{group.name} is {group.left} after all workers left")
    pause = run.longest_pause_seconds
    if pause > LONGEST_PAUSE_SECONDS:
        wrong.append(f"no commit moved for {pause:.0f} s while requests came")
    owned = ", ".join(f"{group.owned} of {group.partitions} owned" for group in run.groups)
    told = f"{owned}; longest pause {pause:.0f} s"
    return Finding("groups not wedged", told, wrong)


def exits(run: Evidence) -> Finding:
    """Killed where killed, 0 where told to stop, and none by itself."""
    wrong = [
        f"{exit.worker}: {exit.how}, ended with {exit.code} and should "
        + ("not have ended" if exit.expected is None else f"have with {exit.expected}")
        for exit in run.exits
        if exit.code != exit.expected
    ]
    told = Counter(f"{exit.how}: {exit.code}" for exit in run.exits)
    counted = ", ".join(f"{count} × {how}" for how, count in sorted(told.items()))
    return Finding("exit codes", counted, wrong)


def done(run: Evidence) -> Finding:
    """The plan was carried out."""
    wrong = [
        f"{kind}: planned {count} times, done {run.done.get(kind, 0)} times"
        for kind, count in run.planned.items()
        if run.done.get(kind, 0) != count
    ]
    return Finding("faults done as planned", f"{sum(run.done.values())} faults", wrong)


def _by(all_of_them: Iterable[T], key: Callable[[T], object]) -> Mapping[object, Sequence[T]]:
    groups: defaultdict[object, list[T]] = defaultdict(list)
    for each in all_of_them:
        groups[key(each)].append(each)
    return groups


def _named(asked: Asked) -> str:
    return f"{asked.request_id or 'the malformed record'} at {asked.place}"
