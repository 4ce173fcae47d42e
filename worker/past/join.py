"""The past: who saw which image when, and what was said of it, joined with what was kept of it.

Verdicts are joined with embeddings by the content, the model and (when a policy asks) the frame
plan. Memory: about 1 KB for each verdict since the time asked for that is on an image of its own,
and half of that again while the columns are put together; embeddings lie on disk. So a million
verdicts on as many images take 1.5 GB and, at 768 dimensions, 1.5 GB on disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.cache import are_unit
from worker.embedding_format import parse_embedding
from worker.past.embedding_store import NOWHERE, EmbeddingStore
from worker.past.verdict_table import VerdictTable, in_force
from worker.past.window import Window
from worker.types import Record

#: A verdict is published a little after it was produced.
LEAD: Final = timedelta(minutes=5)

Progress = Callable[[str, int], None]  #: told what is read, and how many records of it so far


@dataclass(frozen=True, slots=True)
class Tally:
    """What was read, and what of it is no part of the past.

    ``repeats`` have the id of another verdict; ``overruled`` gave way to another on the same
    request; ``outside`` are requests first judged before or after the window.
    """

    read: int = 0
    unreadable: int = 0
    repeats: int = 0
    overruled: int = 0
    outside: int = 0
    unreadable_embeddings: int = 0

    def __add__(self, other: Tally) -> Tally:
        mine, theirs = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + theirs[name] for name in mine})

    def sentences(self) -> list[str]:
        """What people should know of it."""
        told = {
            f"{self.unreadable:,} records on the verdicts' topic are no verdicts": self.unreadable,
            f"{self.unreadable_embeddings:,} records on the embeddings' topic are no embeddings": (
                self.unreadable_embeddings
            ),
        }
        return [f"{sentence}; they were passed over." for sentence, count in told.items() if count]


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """``verdicts`` (see ``verdict_table.SCHEMA``) has the one in force of each request."""

    verdicts: pa.Table
    embeddings: EmbeddingStore
    tally: Tally
    window: Window | None

    def __len__(self) -> int:
        return len(self.verdicts)

    def images(self) -> Iterable[tuple[str | None, str]]:
        """Of each verdict the image's sha256 and the model's digest: with a frame plan, the key of
        its embedding."""
        models = self.verdicts["model_digest"].cast(pa.string()).to_pylist()
        return zip(self.verdicts["sha256"].to_pylist(), models, strict=True)

    def embedded(self) -> int:
        """How many verdicts have an embedding, by whatever frame plan."""
        found = np.zeros(len(self), dtype=np.bool_)
        for plan in self.embeddings.plans():
            found |= self.embeddings.places(self.images(), plan) != NOWHERE
        return int(found.sum())

    def of_policy(self, policy: str) -> Past:
        """Only what was decided under that policy's id."""
        kept = pc.equal(self.verdicts["policy"].cast(pa.string()), policy)
        return replace(self, verdicts=self.verdicts.filter(kept))

    def policies(self) -> dict[str, int]:
        """How many verdicts there are by each, most first."""
        counts = self.verdicts["policy"].value_counts().to_pylist()
        return {
            each["values"]: each["counts"] for each in sorted(counts, key=lambda c: -c["counts"])
        }


async def read_past(
    verdicts: AsyncIterator[Record],
    embeddings: Callable[[], AsyncIterator[Record]],
    store: EmbeddingStore,
    window: Window,
    *,
    metadata: bool = False,
    progress: Progress = lambda what, count: None,
) -> Past:
    """From the records of the two topics, those of ``embeddings`` read when the verdicts are.

    ``verdicts`` should begin ``LEAD`` before the window, and must go on to the end of the topic:
    what came after the window may supersede what is in it. ``metadata`` keeps what the requests
    carried.
    """
    table = VerdictTable(metadata=metadata)
    read = unreadable = 0
    async for record in verdicts:
        read += 1
        unreadable += not table.add(record)
        progress("verdicts", read)
    standing = in_force(table.table())
    chosen = within(standing.verdicts, window)
    tally = Tally(
        read=read,
        unreadable=unreadable,
        repeats=standing.repeats,
        overruled=standing.overruled,
        outside=len(standing.verdicts) - len(chosen),
        unreadable_embeddings=await _keep(embeddings(), store, chosen, progress),
    )
    return Past(chosen, store, tally, window)


def within(verdicts: pa.Table, window: Window) -> pa.Table:
    """Those on requests that were first judged in the window."""
    kept = pc.greater_equal(verdicts["first_at"], pa.scalar(window.since))
    if window.until is not None:
        kept = pc.and_(kept, pc.less(verdicts["first_at"], pa.scalar(window.until)))
    return verdicts if pc.all(kept).as_py() else verdicts.filter(kept)


async def _keep(
    records: AsyncIterator[Record], store: EmbeddingStore, verdicts: pa.Table, progress: Progress
) -> int:
    """Puts the embeddings of images that verdicts are on into the store; how many are none."""
    wanted = {sha256.encode() for sha256 in pc.unique(verdicts["sha256"]).drop_null().to_pylist()}
    read = unreadable = 0
    async for record in records:
        read += 1
        progress("embeddings", read)
        key = record.key or b""
        if key[:64] in wanted or len(key) < 64:
            unreadable += not _take(record, store)
    return unreadable


def _take(record: Record, store: EmbeddingStore) -> bool:
    """False for what is neither an embedding under its own key nor the deletion of one."""
    try:
        key = (record.key or b"").decode()
        if record.value is None:
            store.forget(*key.split(":"))
            return True
        embedding = parse_embedding(record.value)
        if str(embedding.key) != key or not are_unit(embedding.rows) or not len(embedding.rows):
            return False
        store.add(embedding)
    except (ValueError, TypeError):  # of what is no key, too
        return False
    return True
