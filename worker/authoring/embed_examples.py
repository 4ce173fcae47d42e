"""Labelled images to examples: their embeddings from a cache or, where none has them, computed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.authoring.examples import Example
from worker.authoring.labels import LabelledImage, Labels, shown_by
from worker.authoring.thumbnails import thumbnail_of
from worker.errors import Misconfigured, Unexaminable
from worker.examine import Examiner
from worker.policy import Category
from worker.seams import Fetcher, Store
from worker.types import FramePlan, NotModified

_MOST_LEFT_OUT: Final = 0.5
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Examples in the order of their labels; ``left_out`` has the images that could not be
    examined, each with the reason. ``notes`` are sentences for people."""

    examples: Sequence[Example]
    left_out: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()


async def examples_of(
    labels: Labels,
    categories: Sequence[Category],
    plan: FramePlan,
    *,
    examiner: Examiner,
    fetcher: Fetcher,
    at_once: int,
    thumbnails: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Examine the labelled images, ``at_once`` at a time, by a running ``examiner``.

    ``thumbnails`` fills in ``Example.thumbnail`` and ``greyscale``, which takes a decoding more.
    ``progress`` is told how many images of how many are done. Raises ``Misconfigured`` where more
    than half of them cannot be examined.
    """
    slots = asyncio.Semaphore(at_once)
    done = 0

    async def one(image: LabelledImage) -> Example | str:
        nonlocal done
        async with slots:
            try:
                return await _example(image)
            except Unexaminable as error:
                return error.detail
            except OSError as error:
                return f"it cannot be read: {error.strerror}"
            finally:
                done += 1
                progress(done, len(labels.images))

    async def _example(image: LabelledImage) -> Example:
        body = await _body(image, fetcher)
        examined = await examiner.by_content(body, plan)
        picture = await asyncio.to_thread(thumbnail_of, body) if thumbnails else None
        return Example(
            name=image.name,
            label=image.label,
            embedding=examined.embedding,
            shows=shown_by(image.label, labels, categories),
            otherwise=None,
            weight=image.weight,
            source=image.source,
            split=image.split,
            thumbnail=picture.jpeg if picture else None,
            greyscale=picture.greyscale if picture else None,
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(image)) for image in labels.images]
    outcomes = [(image, task.result()) for image, task in zip(labels.images, tasks, strict=True)]
    examples = [outcome for _, outcome in outcomes if isinstance(outcome, Example)]
    left_out = [
        (image.name, f"{image.place}: {outcome}")
        for image, outcome in outcomes
        if isinstance(outcome, str)
    ]
    if len(left_out) > _MOST_LEFT_OUT * len(outcomes):
        named = "\n".join(why for _, why in left_out[:_SHOWN])
        raise Misconfigured(
            f"{len(left_out)} of the {len(outcomes)} labelled images cannot be examined, which is "
            f"more than half; check their paths. The first of them:\n{named}"
        )
    notes = (*_contradictions(examples), *_without_hash(examples))
    return Embedded(examples, left_out, notes)


async def _body(image: LabelledImage, fetcher: Fetcher) -> bytes:
    if image.path is not None:
        return await asyncio.to_thread(_read, image.path)
    assert image.url is not None
    fetched = await fetcher.fetch(image.url)
    assert not isinstance(fetched, NotModified)  # which only an ETag asks for
    return fetched.body


def _read(path: Path) -> bytes:
    # pipes and devices would give bytes for ever, or none
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")
    return path.read_bytes()


def _contradictions(examples: Iterable[Example]) -> Iterable[str]:
    """The same bytes under two labels."""
    first: dict[str, Example] = {}
    for example in examples:
        before = first.setdefault(example.embedding.key.sha256, example)
        if before.label != example.label:
            yield (
                f"{before.name} and {example.name} are the same image, labelled {before.label!r} "
                f"and {example.label!r}"
            )


def _without_hash(examples: Sequence[Example]) -> Iterable[str]:
    if missing := sum(example.embedding.facts.unhashed for example in examples):
        yield (
            f"{missing} of {len(examples)} images have no perceptual hash, so those of them that "
            f"are near-duplicates are held out apart, and figures promise too much; set "
            f"IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true"
        )


class ReadOnly:
    """A ``Store`` that is only read: in Redis is nothing that was not published."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        return await self._store.get(keys)

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        pass

    async def delete(self, keys: Sequence[str]) -> None:
        pass

    async def close(self) -> None:
        await self._store.close()
