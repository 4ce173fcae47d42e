"""Labelled images become examples."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes import FakeEncoder
from tests.fakes_images import FakeDecoder, FakeFetcher, not_found
from tests.policy_factory import category, policy_of
from worker.authoring.embed_examples import Embedded, ReadOnly, examples_of
from worker.authoring.labels import LabelledImage, Labels
from worker.authoring.thumbnails import thumbnail_of
from worker.cache import EmbeddingCache, Stores, UrlCache
from worker.embedding_format import encode_embedding, parse_embedding
from worker.errors import Misconfigured
from worker.examine import Examiner
from worker.hosts import Hosts
from worker.stores import MemoryStore
from worker.types import Embedding, Fetched, FramePlan

CATEGORIES = policy_of(category(), category("colour.green", prompts=["green"])).categories
URL = "http://images.test/a.jpg?sig=secret"


class Bench:
    """An examiner that looks into ``stores``, and what it was given and asked."""

    def __init__(self, stores: Stores = ()) -> None:
        self.encoder, self.decoder, self.fetcher = FakeEncoder(), FakeDecoder(), FakeFetcher()
        self.stores = stores
        self.progress: list[tuple[int, int]] = []

    async def embed(self, *images: LabelledImage) -> Embedded:
        meanings = {label: f"colour.{label}" for label in ("red", "green")}
        async with self._examiner() as examiner:
            return await examples_of(
                Labels(images, meanings),
                CATEGORIES,
                FramePlan(),
                examiner=examiner,
                fetcher=self.fetcher,
                at_once=3,
                progress=lambda done, total: self.progress.append((done, total)),
            )

    @asynccontextmanager
    async def _examiner(self) -> AsyncIterator[Examiner]:
        async def keep(embedding: Embedding) -> None: ...

        examiner = Examiner(
            fetcher=self.fetcher,
            hosts=Hosts(slots=8, share=1.0),
            decoder=self.decoder,
            encoder=self.encoder,
            embeddings=EmbeddingCache(
                self.stores,
                dimension=self.encoder.info.dimension,
                ttl_seconds=600,
                encode=encode_embedding,
                parse=parse_embedding,
            ),
            urls=UrlCache((), url_key=b"k" * 32, ttl_seconds=0, revalidate_seconds=0),
            keep=keep,
            images_in_work=8,
            low_share=1.0,
            batch_rows=8,
            batch_wait_seconds=0,
            batches_in_flight=1,
        )
        running = asyncio.create_task(examiner.run())
        try:
            yield examiner
        finally:
            running.cancel()


def at(path: Path, label: str, body: bytes | None = None, **keys: object) -> LabelledImage:
    path.write_bytes(label.encode() if body is None else body)
    return LabelledImage(path.name, "labels.csv:2", label, path=path, **keys)  # type: ignore[arg-type]


async def test_examples_have_what_was_said_of_them_and_come_in_their_order(tmp_path: Path) -> None:
    bench = Bench()
    bench.fetcher.serves[URL] = Fetched(b"green")
    red = at(tmp_path / "a", "red", split="test", weight=2.0, source="site")
    green = LabelledImage("http://images.test/a.jpg", "labels.csv:3", "green", url=URL)
    black = at(tmp_path / "b", "black")
    first, second, third = (await bench.embed(red, green, black)).examples
    assert (first.name, first.label, first.split, first.weight, first.source) == (
        *("a", "red", "test", 2.0, "site"),
    )
    assert [one.says("colour.red") for one in (first, second, third)] == [True, False, False]
    assert (second.name, second.says("colour.green")) == ("http://images.test/a.jpg", True)
    assert first.embedding.rows.shape == (1, bench.encoder.info.dimension)
    assert bench.progress == [(1, 3), (2, 3), (3, 3)]


async def test_images_that_cannot_be_examined_are_left_out_and_named(tmp_path: Path) -> None:
    bench = Bench()
    bench.fetcher.serves[URL] = not_found()
    os.mkfifo(tmp_path / "pipe")
    images = [
        *(at(tmp_path / str(number), "red") for number in range(5)),
        at(tmp_path / "html", "red", b"mauve"),
        LabelledImage("none.jpg", "labels.csv:8", "red", path=tmp_path / "none.jpg"),
        LabelledImage("a.jpg", "labels.csv:9", "red", url=URL),
        LabelledImage("pipe", "labels.csv:10", "red", path=tmp_path / "pipe"),
    ]
    found = await bench.embed(*images)
    assert [one.name for one in found.examples] == ["0", "1", "2", "3", "4"]
    assert found.left_out == [
        ("html", "labels.csv:2: no such colour"),
        ("none.jpg", "labels.csv:8: it cannot be read: No such file or directory"),
        ("a.jpg", "labels.csv:9: 404 Not Found"),
        ("pipe", "labels.csv:10: it cannot be read: it is no file"),
    ]


async def test_more_than_half_left_out_is_refused(tmp_path: Path) -> None:
    images = [at(tmp_path / str(n), "red", b"red" if n < 2 else b"mauve") for n in range(5)]
    with pytest.raises(Misconfigured, match=r"3 of the 5 .*check their paths(.|\n)*no such colour"):
        await Bench().embed(*images)


async def test_the_same_bytes_under_two_labels_are_told_of(tmp_path: Path) -> None:
    one, other = at(tmp_path / "a", "red"), at(tmp_path / "b", "green", b"red")
    [note] = (await Bench().embed(one, other)).notes
    assert note == "a and b are the same image, labelled 'red' and 'green'"


async def test_images_whose_near_duplicates_nobody_can_know_are_counted(tmp_path: Path) -> None:
    bench = Bench()
    bench.decoder.hashing = False
    [note] = (await bench.embed(at(tmp_path / "a", "red"), at(tmp_path / "b", "green"))).notes
    assert note.startswith("2 of 2 images have no perceptual hash")


async def test_what_was_embedded_before_is_neither_decoded_nor_encoded(tmp_path: Path) -> None:
    stores: Stores = [("memory", MemoryStore())]
    await Bench(stores).embed(at(tmp_path / "a", "red"))
    again = Bench(stores)
    [example] = (await again.embed(at(tmp_path / "a", "red"))).examples
    assert example.says("colour.red")
    assert (again.decoder.decoded, again.encoder.images) == ([], [])


async def test_redis_is_read_and_never_written(tmp_path: Path) -> None:
    redis = MemoryStore()
    await Bench([("redis", redis)]).embed(at(tmp_path / "a", "red"))
    nearer = MemoryStore()
    bench = Bench([("memory", nearer), ("redis", ReadOnly(redis))])
    held = redis.size_bytes
    await bench.embed(at(tmp_path / "a", "red"), at(tmp_path / "b", "green"))
    assert bench.decoder.decoded == [b"green"]
    assert redis.size_bytes == held
    assert nearer.size_bytes > held


def picture(mode: str, size: tuple[int, int], colour: object, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_thumbnail_is_small_and_keeps_the_shape(format: str) -> None:
    found = thumbnail_of(picture("RGB", (1000, 500), (200, 30, 30), format))
    small = Image.open(io.BytesIO(found.jpeg))
    assert (small.format, small.size) == ("JPEG", (160, 80))
    assert len(found.jpeg) < 2000


@pytest.mark.parametrize(
    ("body", "greyscale"),
    [
        (picture("L", (9, 9), 7), True),
        (picture("RGB", (9, 9), (7, 7, 7), "JPEG"), True),
        (picture("RGB", (9, 9), (90, 7, 7)), False),
        (picture("RGBA", (9, 9), (90, 7, 7, 0)), True),
    ],
    ids=["grey", "grey in colours", "red", "transparent"],
)
def test_a_picture_without_colours_is_greyscale(body: bytes, greyscale: bool) -> None:
    assert thumbnail_of(body).greyscale is greyscale
