"""``imagewarden scan``: judge files, folders and URLs, with no topic and no broker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from PIL import Image

from worker.assembly import examiner_of, load_model
from worker.commands.render import Exit, Format, exit_code, print_verdicts, progress_bar
from worker.egress import public_url
from worker.errors import Misconfigured
from worker.judge import Judge
from worker.reload import PolicyStore
from worker.schema import Request, Verdict
from worker.settings import Settings
from worker.types import Embedding


@dataclass(frozen=True, slots=True)
class Target:
    """A file or a URL, by the name it is shown under."""

    name: str
    url: str | None = None
    path: Path | None = None

    async def request(self) -> Request:
        data = None if self.path is None else await asyncio.to_thread(self.path.read_bytes)
        return Request(
            schema_version=1,
            request_id=str(uuid4()),
            item_id=self.name[-256:],
            url=self.url,
            data=data,
        )


async def scan(settings: Settings, targets: Sequence[str], format: Format) -> Exit:
    """Prints a verdict for each image, in the order they were named."""
    images = list(targets_of(targets))
    if not images:
        raise Misconfigured("there is no image among what was named; name files, folders or URLs")
    paths = [Path(path) for path in settings.policies]
    with progress_bar() as progress:
        loading = progress.add_task("loading the model", total=None)
        encoder = await asyncio.to_thread(load_model, settings)
        policies = PolicyStore(paths, encoder, hashed=settings.decode.perceptual_hash)
        await policies.load_all()
        progress.remove_task(loading)
        task = progress.add_task("scanning", total=len(images))
        judged: list[tuple[str, Verdict]] = []
        async with examiner_of(settings, encoder, keep_nothing) as examiner:
            judge = Judge(
                examiner=examiner, policies=policies, model=encoder.info, worker=settings.worker
            )
            async for name, verdict in _in_order(judge, images, at_once=settings.work.images):
                judged.append((name, verdict))
                progress.advance(task)
                if format is Format.JSONL:
                    print_verdicts([judged[-1]], format)
    if format is Format.TABLE:
        print_verdicts(judged, format)
    return exit_code(verdict for _, verdict in judged)


def targets_of(named: Iterable[str]) -> Iterator[Target]:
    """What the arguments name: URLs, files, the images in folders, and a list on ``-``.

    Raises ``Misconfigured`` for what does not exist.
    """
    suffixes = {suffix for suffix in Image.registered_extensions() if suffix != ".pdf"}
    for name in named:
        if name == "-":
            yield from targets_of(line for raw in sys.stdin if (line := raw.strip()))
        elif "://" in name:
            yield Target(public_url(name), url=name)
        elif (path := Path(name)).is_dir():
            for inner in sorted(path.rglob("*")):
                if inner.suffix.lower() in suffixes and inner.is_file():
                    yield Target(str(inner), path=inner)
        elif path.is_file():
            yield Target(name, path=path)
        else:
            raise Misconfigured(f"{name} is no file, no folder and no URL")


async def _in_order(
    judge: Judge, images: Sequence[Target], *, at_once: int
) -> AsyncIterator[tuple[str, Verdict]]:
    """Verdicts in the order of the images, ``at_once`` of which are worked on."""
    slots = asyncio.Semaphore(at_once)

    async def one(image: Target) -> Verdict:
        async with slots:
            return await judge.verdict(await image.request())

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(image)) for image in images]
        for image, task in zip(images, tasks, strict=True):
            yield image.name, await task


async def keep_nothing(embedding: Embedding) -> None:
    """There is no topic to keep it on."""
