"""Labelled images as examples, for every command that learns from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.assembly import examiner_of, fetcher_of, redis_of
from worker.authoring.disk_store import DiskStore, cache_folder
from worker.authoring.embed_examples import Embedded, ReadOnly, examples_of
from worker.authoring.labels import Labels, read_labels
from worker.cache import Stores
from worker.commands.render import progress_bar
from worker.errors import Misconfigured
from worker.policy import Policy
from worker.seams import Encoder
from worker.settings import Settings
from worker.types import Embedding

_CACHE: Final = "embeddings.sqlite"


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What the options of such commands say: ``labels`` is a CSV file or a folder, ``meanings``
    are LABEL=CATEGORY each, ``source`` and ``source_until`` as ``read_labels`` takes them."""

    labels: Path
    meanings: Sequence[str] = ()
    source: str | None = None
    source_until: str | None = None
    cache: bool = True

    def read(self, policy: Policy) -> Labels:
        """Takes no time: what is wrong with labels is told before a model is loaded."""
        return read_labels(
            self.labels,
            policy.categories,
            given=_given(self.meanings),
            source=self.source,
            source_until=self.source_until,
        )


def embedded(
    settings: Settings,
    encoder: Encoder,
    policy: Policy,
    labels: Labels,
    *,
    cache: bool = True,
    thumbnails: bool = False,
) -> Embedded:
    """The labelled images as examples, with a progress bar. ``cache`` keeps their embeddings on
    this machine's disk; Redis is only read."""
    with progress_bar() as bar:
        task = bar.add_task("embedding the labelled images", total=len(labels.images))

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return asyncio.run(
            _embedded(settings, encoder, policy, labels, cache, thumbnails, progress)
        )


async def _embedded(
    settings: Settings,
    encoder: Encoder,
    policy: Policy,
    labels: Labels,
    cache: bool,
    thumbnails: bool,
    progress: Callable[[int, int], None],
) -> Embedded:
    async with AsyncExitStack() as parts:
        tiers: Stores = []
        if cache:
            disk = DiskStore(cache_folder() / _CACHE)
            parts.push_async_callback(disk.close)
            tiers = [("memory", disk)]  # it stands where a worker has its memory
        if redis := redis_of(settings):
            parts.push_async_callback(redis.close)
            tiers = [*tiers, ("redis", ReadOnly(redis))]
        examiner = await parts.enter_async_context(
            examiner_of(settings, encoder, _keep_nothing, tiers=tiers)
        )
        fetcher = fetcher_of(settings)
        parts.push_async_callback(fetcher.close)
        return await examples_of(
            labels,
            policy.categories,
            policy.plan,
            examiner=examiner,
            fetcher=fetcher,
            at_once=settings.work.images,
            thumbnails=thumbnails,
            progress=progress,
        )


def _given(meanings: Sequence[str]) -> Mapping[str, str]:
    given: dict[str, str] = {}
    for meaning in meanings:
        label, equals, category = (part.strip() for part in meaning.rpartition("="))
        if not (label and equals and category):
            raise Misconfigured(f"--label {meaning}: write it as LABEL=CATEGORY")
        if given.setdefault(label, category) != category:
            raise Misconfigured(f"--label {label}: is said to mean two categories; keep one")
    return given


async def _keep_nothing(embedding: Embedding) -> None:
    """There is no topic to keep it on."""
