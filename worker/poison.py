"""Which records may have killed their processes. Pure: no I/O, no clock.

The count must outlive the process, travel with the partition to its next owner, and need nothing
but Kafka: so it is kept in the metadata of the group's commits. Before records are worked on, a
commit reserves their offsets; when the last one of a partition is done, or the partition is given
up in good order, a commit closes it. Whoever is assigned a partition whose reservation is open
knows that its last owner died, or lost it, with some of these records in flight.

A record that was in flight at enough such ends is a suspect. Suspects are worked on one by one,
each named in a commit before its work begins: a process that dies then names its killer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum, auto

from worker.types import OffsetAndMetadata

#: Offsets reserved beyond the last one polled are as many as were polled since the last commit, so
#: that a busy partition needs few commits beside the regular ones; but all that is reserved is
#: suspect when the process dies, so at most this many.
_MOST_AHEAD = 200

_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Note:
    """What a commit tells besides its offset; as JSON in its metadata, empty where it is nothing.

    ``reserved`` is the highest offset that may be in work, and ``alone`` the one that is tried
    alone; -1 is none. ``deaths`` are the highest offsets that were reserved when processes died;
    ``poison`` are offsets that were tried alone by processes that died.
    """

    reserved: int = _NOTHING
    deaths: tuple[int, ...] = ()
    alone: int = _NOTHING
    poison: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "" if self == Note() else json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, metadata: str) -> Note:
        """Of anything that is no note of ours, one that tells nothing."""
        try:
            told = json.loads(metadata)
            lists = {name: tuple(told.get(name, ())) for name in ("deaths", "poison")}
            note = cls(**told | lists)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return cls()
        offsets = (note.reserved, note.alone, *note.deaths, *note.poison)
        return note if all(type(offset) is int for offset in offsets) else cls()


class Standing(Enum):
    """What may be done with a record now."""

    UNMARKED = auto()  #: nothing, before a commit says that it is in work
    FREE = auto()  #: it may be worked on
    SUSPECT = auto()  #: it may be worked on alone
    POISON = auto()  #: it is not worked on: a process died while it was tried alone


class Journal:
    """Of one partition, from its assignment on: what may be worked on, and what commits tell.

    ``committed`` is what the group had committed at the assignment; ``max_deaths`` how many
    processes may end with a record in flight before it is tried alone.
    """

    def __init__(self, committed: OffsetAndMetadata, *, max_deaths: int) -> None:
        note = Note.parse(committed.metadata)
        self._max_deaths = max_deaths
        self._deaths = note.deaths
        self._poison = set(note.poison)
        if note.reserved >= committed.offset:  # it was never closed
            if note.alone >= committed.offset:
                self._poison.add(note.alone)
            # more of them than it takes to make a suspect would tell nothing new
            self._deaths = tuple(sorted((*note.deaths, note.reserved))[-max_deaths:])
        # Not what the last owner reserved: the death just counted must be committed first
        self._reserved = _NOTHING
        self._alone = _NOTHING
        self._polled = committed.offset - 1
        self.trying = _NOTHING

    def standing(self, offset: int) -> Standing:
        if offset in self._poison:
            return Standing.POISON
        if sum(offset <= reserved for reserved in self._deaths) >= self._max_deaths:
            return Standing.SUSPECT
        return Standing.FREE if offset <= self._reserved else Standing.UNMARKED

    def marked_alone(self, offset: int) -> bool:
        """Whether a commit names it as the one that is tried alone."""
        return offset == self._alone

    def note(self, watermark: int, polled: int, *, idle: bool) -> Note:
        """What the next commit should tell. ``polled`` is the highest offset polled; ``idle``: none
        is in flight, or those that are will be read again by an owner who should think nothing of
        it."""
        deaths = tuple(reserved for reserved in self._deaths if reserved >= watermark)
        # Named until it is answered: it may fall to yet another owner
        poison = tuple(sorted(offset for offset in self._poison if offset >= watermark))
        if idle:
            return Note(deaths=deaths, poison=poison)
        ahead = min(_MOST_AHEAD, polled - self._polled)
        reserved = max(self._reserved, polled + ahead)
        return Note(reserved, deaths, self.trying, poison)

    def writing(self, note: Note, polled: int) -> None:
        """A commit of ``note`` is under way: what it no longer covers may not begin."""
        self._polled = polled
        self._reserved = min(self._reserved, note.reserved)
        self._alone = _NOTHING

    def written(self, note: Note) -> None:
        """The commit was acknowledged."""
        self._reserved, self._alone, self._deaths = note.reserved, note.alone, note.deaths
