"""The past as commands get it: from the topics or from Parquet, with a progress bar; and policies
ready to be held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.progress import TaskID

from worker.commands.render import progress_bar
from worker.compile import compile_policy, texts_of
from worker.compiled import CompiledPolicy
from worker.errors import Misconfigured
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import LEAD, Past, read_past
from worker.past.parquet import read_parquet
from worker.past.window import Window, parse_window
from worker.policy import Policy, check_model
from worker.seams import Encoder
from worker.settings import Settings
from worker.topics import TopicReader

DEFAULT_SINCE: Final = "7d"

_TEXTS_A_CALL: Final = 64
_RECORDS_A_STEP: Final = 512


def window_of(since: str, until: str | None) -> Window:
    return parse_window(since, until, datetime.now(UTC))


def reader_of(settings: Settings, topic: str) -> TopicReader:
    """Of what is committed: a transaction that was aborted said nothing."""
    return TopicReader(
        bootstrap=settings.kafka.bootstrap,
        topic=topic,
        client_id=settings.worker,
        options={**settings.kafka_security.options(), "isolation_level": "read_committed"},
    )


async def past_of_topics(
    settings: Settings,
    verdicts: TopicReader,
    store: EmbeddingStore,
    window: Window,
    *,
    metadata: bool = False,
) -> Past:
    """``verdicts`` is open; it is read to its end, and left there."""
    async with reader_of(settings, settings.kafka.embeddings_topic) as embeddings:
        with counting() as progress:
            return await read_past(
                verdicts.read_all(since=(window.since - LEAD).timestamp()),
                embeddings.read_all,
                store,
                window,
                metadata=metadata,
                progress=progress,
            )


def past_of_files(paths: Sequence[Path], store: EmbeddingStore, window: Window | None) -> Past:
    """Of Parquet files, or of all in a folder."""
    files = [
        file
        for path in paths
        for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])
    ]
    if not files:
        raise Misconfigured(f"there is no .parquet file in {paths[0]}")
    with progress_bar() as bar:
        task = bar.add_task("reading the past", total=None)
        return read_parquet(
            files,
            store,
            window,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def of_policy(past: Past, policy: str) -> Past:
    """Raises ``Misconfigured`` where nothing was decided under that id."""
    kept = past.of_policy(policy)
    if len(kept):
        return kept
    window = f" in {past.window}" if past.window else ""
    if not len(past):
        raise Misconfigured(f"there are no verdicts{window}; look further back with --since")
    others = ", ".join(f"{count:,} by {name!r}" for name, count in past.policies().items())
    raise Misconfigured(
        f"no verdict{window} is by the policy {policy!r}: there are {others}; name one with --of"
    )


def comparable(past: Past, policies: Sequence[Policy]) -> Past:
    """Raises ``Misconfigured`` where all of it is by other models than the policies': found before
    one is loaded."""
    names = set(past.verdicts["model"].cast(pa.string()).unique().to_pylist())
    for policy in policies:
        if policy.model not in names:
            raise Misconfigured(
                f"policy {policy.id!r} is written for the model {policy.model!r}, but these "
                f"verdicts are by {', '.join(map(repr, sorted(names)))}; embeddings of one model "
                "say nothing to another"
            )
    return past


def compiled(encoder: Encoder, policies: Sequence[Policy]) -> list[CompiledPolicy]:
    """Raises ``Misconfigured``, also for a policy that was written for another model."""
    for policy in policies:
        check_model(policy, encoder.info)
    texts = list(dict.fromkeys(text for policy in policies for text in texts_of(policy)))
    embeddings: dict[str, NDArray[np.float32]] = {}
    with progress_bar() as bar:
        task = bar.add_task("embedding the prompts", total=len(texts))
        for start in range(0, len(texts), _TEXTS_A_CALL):
            chunk = texts[start : start + _TEXTS_A_CALL]
            embeddings |= dict(zip(chunk, encoder.encode_texts(chunk), strict=True))
            bar.advance(task, len(chunk))
    return [compile_policy(policy, encoder.info, embeddings) for policy in policies]


@contextmanager
def counting() -> Iterator[Callable[[str, int], None]]:
    """A progress bar of counts without an end."""
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def count(what: str, so_far: int) -> None:
            if so_far % _RECORDS_A_STEP:
                return
            if what not in tasks:
                tasks[what] = bar.add_task(f"reading {what}", total=None)
            bar.update(tasks[what], completed=so_far)

        yield count
