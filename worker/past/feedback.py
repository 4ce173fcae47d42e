"""Feedback joined with the verdicts it answers, in bounded memory. Pure."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from worker.feedback import Feedback
from worker.schema import Action, Verdict

_Actions = tuple[tuple[str, Action], ...]

#: What is remembered of one item: it is judged anew by each request, retry and redecision.
_VERDICTS_OF_AN_ITEM = 16
_CATEGORIES_OF_AN_ITEM = 256


class Judged(NamedTuple):
    """An image that a person looked at: what a category had said of it, and whether it shows it.

    ``weight`` is how many images with such a verdict it stands for.
    """

    policy: str
    category: str
    action: Action
    shows: bool
    weight: float = 1.0
    item_id: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Said:
    """By a verdict: the action of each category, of those on trial too."""

    verdict_id: UUID
    request_id: str
    policy: str
    at: datetime
    sha256: bytes
    actions: _Actions


@dataclass(frozen=True, slots=True)
class _Word:
    """Of a person: what is needed of a ``Feedback``, which itself takes five times the memory."""

    at: datetime
    shows: bool
    sampled: float
    verdict_id: UUID | None
    request_id: str | None
    policy: str | None


@dataclass(slots=True)
class _Item:
    said: list[_Said] = field(default_factory=list)
    words: dict[str, _Word] = field(default_factory=dict)  #: by category


class FeedbackJoin:
    """Remembers the verdicts of the last ``items`` items that were judged, and besides them those
    of the last ``items`` that people said something of. Those that are forgotten count no more, or
    leave feedback on them unmatched.

    Feedback answers the verdict that it names; or the last one that examined an image, and knew
    the category, before the person decided: of the request and the policy that it names, where it
    does. It may come before its verdict.
    """

    def __init__(self, *, items: int) -> None:
        self._items = items
        self._unanswered: OrderedDict[str, _Item] = OrderedDict()
        self._answered: OrderedDict[str, _Item] = OrderedDict()

    def add_verdict(self, verdict: Verdict) -> None:
        """Those without categories say nothing that could be right or wrong."""
        actions = tuple((each.id, each.action) for each in (*verdict.categories, *verdict.shadow))
        if not actions or verdict.image is None:
            return
        items = self._answered if verdict.item_id in self._answered else self._unanswered
        item = items.pop(verdict.item_id, None) or _Item()
        if any(said.verdict_id == verdict.verdict_id for said in item.said):  # a repeat
            items[verdict.item_id] = item
            return
        item.said.append(
            _Said(
                verdict_id=verdict.verdict_id,
                request_id=verdict.request_id,
                policy=sys.intern(verdict.policy.id),
                at=verdict.produced_at,
                sha256=bytes.fromhex(verdict.image.sha256),
                actions=_shared(actions),
            )
        )
        del item.said[:-_VERDICTS_OF_AN_ITEM]
        self._keep(items, verdict.item_id, item)

    def add_feedback(self, feedback: Feedback, at: datetime) -> None:
        """``at`` is when the person decided. Of one item and category the latest counts."""
        name = feedback.item_id
        item = self._answered.pop(name, None) or self._unanswered.pop(name, None) or _Item()
        before = item.words.get(feedback.category)
        if before is None or before.at <= at:
            item.words[feedback.category] = _Word(
                at=at,
                shows=feedback.shows,
                sampled=feedback.sampled,
                verdict_id=feedback.verdict_id,
                request_id=feedback.request_id,
                policy=feedback.policy,
            )
        if len(item.words) > _CATEGORIES_OF_AN_ITEM:
            del item.words[next(iter(item.words))]
        self._keep(self._answered, name, item)

    def judged(self, since: datetime) -> tuple[list[Judged], int]:
        """What was decided by people since then, and how much of their feedback is unmatched."""
        found, unmatched = [], 0
        for name, item in self._answered.items():
            for category, word in item.words.items():
                if word.at < since:
                    continue
                if (answered := _answered_by(word, category, item.said)) is None:
                    unmatched += 1
                    continue
                said, action = answered
                found.append(
                    Judged(
                        policy=said.policy,
                        category=category,
                        action=action,
                        shows=word.shows,
                        weight=1.0 / word.sampled,
                        item_id=name,
                        sha256=said.sha256.hex(),
                    )
                )
        return found, unmatched

    def _keep(self, items: OrderedDict[str, _Item], name: str, item: _Item) -> None:
        items[name] = item
        if len(items) > self._items:
            items.popitem(last=False)


def _answered_by(
    word: _Word, category: str, all_said: Sequence[_Said]
) -> tuple[_Said, Action] | None:
    """The verdict that the word answers, and what it said of the category."""
    candidates = [
        (said, action)
        for said in all_said
        for id_, action in said.actions
        if id_ == category
        and word.policy in (None, said.policy)
        and word.request_id in (None, said.request_id)
        and (said.at <= word.at if word.verdict_id is None else said.verdict_id == word.verdict_id)
    ]
    return max(candidates, key=lambda candidate: candidate[0].at, default=None)


@lru_cache(maxsize=4096)
def _shared(actions: _Actions) -> _Actions:
    """One object for all that are equal: most verdicts say the same."""
    return actions
