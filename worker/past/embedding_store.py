"""Embeddings of the past on disk, found by what they are of; what is held in memory of each is a
key and a few numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from worker.types import Embedding, EmbeddingKey, Float16Rows, ImageFacts

Indices = NDArray[np.intp]

NOWHERE: Final = -1  #: the place of what is not there

_FLOAT16: Final = np.dtype("<f2")
_DIGITS: Final = 32  # of a model's or plan's digest, as they stand in the keys of records
_HASH_BYTES: Final = 32
#: What is held of each embedding, as 64-bit integers.
_SHELF, _FIRST, _COUNT, _PLAN, _TYPE, _WIDTH, _HEIGHT, _BYTES, _FRAMES, _HASHED = range(10)
_FIELDS: Final = 10


class Rows(NamedTuple):
    """Of several images all rows, one image's after another's: [rows, dimension], the first row of
    each image, and of each row the frame that it was taken from."""

    values: Float16Rows
    starts: Indices
    frames: Indices


class EmbeddingStore:
    """Embeddings by place, from 0 on, in the order in which they were added.

    ``with EmbeddingStore() as store`` keeps rows in temporary files, one for each model, 2 bytes a
    number; they are mapped into memory only while they are read. Of equal keys the last one that
    was added is found.
    """

    def __init__(self) -> None:
        self._files = ExitStack()
        self._shelves: list[_Shelf] = []
        self._places: dict[bytes, int] = {}
        self._models = _Names()
        self._plans = _Names()
        self._types = _Names()
        self._fields = array("q")
        self._hashes = bytearray()  #: perceptual hashes and content digests, by place

    def __enter__(self) -> Self:
        folder = self._files.enter_context(TemporaryDirectory(prefix="imagewarden-"))
        self._folder = Path(folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __len__(self) -> int:
        """How many can be found."""
        return len(self._places)

    def add(self, embedding: Embedding) -> None:
        """Raises ``ValueError`` for one of another dimension than its model's others, and for a
        perceptual hash that is none."""
        key, facts, rows = embedding.key, embedding.facts, embedding.rows
        hash_ = bytes.fromhex(facts.perceptual_hash or "00" * _HASH_BYTES)
        if len(hash_) != _HASH_BYTES:
            raise ValueError(f"a perceptual hash of {len(hash_)} bytes, not {_HASH_BYTES}")
        model, plan = self._models.number(key.model), self._plans.number(key.plan)
        if model == len(self._shelves):
            path = self._folder / f"{model}.float16"
            self._files.enter_context(file := path.open("wb"))
            self._shelves.append(_Shelf(file, path, rows.shape[1]))
        first = self._shelves[model].add(rows, facts.rows)
        numbers = (facts.width, facts.height, facts.bytes, facts.frames)
        hashed = facts.perceptual_hash is not None
        type_ = self._types.number(facts.media_type)
        self._fields.extend((model, first, len(rows), plan, type_, *numbers, hashed))
        self._hashes += hash_ + bytes.fromhex(key.sha256)
        self._places[_key(key.sha256, model, plan)] = len(self._fields) // _FIELDS - 1

    def forget(self, sha256: str, model: str, plan: str) -> None:
        """``model`` and ``plan`` are digests, or the digits of them in the key of a record."""
        model_number, plan_number = self._models.known(model), self._plans.known(plan)
        self._places.pop(_key(sha256, model_number, plan_number), None)

    def __contains__(self, key: EmbeddingKey) -> bool:
        model, plan = self._models.known(key.model), self._plans.known(key.plan)
        return _key(key.sha256, model, plan) in self._places

    def plans(self) -> tuple[str, ...]:
        """The digests of all frame plans there are."""
        return tuple(self._plans.names)

    def places(self, images: Iterable[tuple[str | None, str]], plan: str) -> Indices:
        """Of each pair of an image's sha256 and a model's digest, ``NOWHERE`` where there is no
        embedding by that plan."""
        number, find, models = self._plans.known(plan), self._places.get, self._models.known
        return np.array(
            [
                NOWHERE if sha256 is None else find(_key(sha256, models(model), number), NOWHERE)
                for sha256, model in images
            ],
            dtype=np.intp,
        )

    def rows(self, places: Indices) -> Rows:
        """Of images by one model, or models of the same dimension; at least one."""
        fields = self._fields_of(places)
        counts = fields[:, _COUNT]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        total = int(counts.sum())
        at = np.repeat(fields[:, _FIRST] - starts, counts) + np.arange(total)
        shelf_of = np.repeat(fields[:, _SHELF], counts)
        values = np.empty((total, self._shelves[fields[0, _SHELF]].dimension), np.float16)
        frames = np.empty(total, np.intp)
        for number in np.unique(shelf_of):
            on, shelf = shelf_of == number, self._shelves[number]
            values[on], frames[on] = shelf.mapped()[at[on]], shelf.frames_of(at[on])
        return Rows(values, starts.astype(np.intp), frames)

    def perceptual_hashes(self, places: Indices) -> list[str | None]:
        hashed = self._fields_of(places)[:, _HASHED]
        return [
            self._hash(2 * place) if known else None
            for place, known in zip(places.tolist(), hashed.tolist(), strict=True)
        ]

    def frames(self, places: Indices) -> NDArray[np.int64]:
        """How many the files have, scored or not."""
        return self._fields_of(places)[:, _FRAMES]

    def __getitem__(self, place: int) -> Embedding:
        fields = self._fields[_FIELDS * place : _FIELDS * (place + 1)]
        rows = self.rows(np.array([place]))
        sha256 = self._hash(2 * place + 1)
        facts = ImageFacts(
            sha256=sha256,
            perceptual_hash=self._hash(2 * place) if fields[_HASHED] else None,
            media_type=self._types.names[fields[_TYPE]],
            width=fields[_WIDTH],
            height=fields[_HEIGHT],
            bytes=fields[_BYTES],
            frames=fields[_FRAMES],
            rows=tuple(rows.frames.tolist()),
        )
        model, plan = self._models.names[fields[_SHELF]], self._plans.names[fields[_PLAN]]
        return Embedding(EmbeddingKey(sha256, model, plan), rows.values, facts)

    def _fields_of(self, places: Indices) -> NDArray[np.int64]:
        # a copy of these: while the whole is viewed, it cannot grow
        return np.frombuffer(self._fields, np.int64).reshape(-1, _FIELDS)[places]

    def _hash(self, number: int) -> str:
        return self._hashes[_HASH_BYTES * number : _HASH_BYTES * (number + 1)].hex()


class _Shelf:
    """The rows of one model."""

    def __init__(self, file: BinaryIO, path: Path, dimension: int) -> None:
        self.dimension = dimension
        self._file = file
        self._path = path
        self._frames = array("i")

    def add(self, rows: Float16Rows, frames: Iterable[int]) -> int:
        if rows.shape[1] != self.dimension:
            raise ValueError(f"{rows.shape[1]} numbers a row, where others have {self.dimension}")
        first = len(self._frames)
        self._file.write(rows.astype(_FLOAT16).tobytes())
        self._frames.extend(frames)
        return first

    def mapped(self) -> Float16Rows:
        self._file.flush()
        shape = (len(self._frames), self.dimension)
        return np.memmap(self._path, _FLOAT16, "r", shape=shape)

    def frames_of(self, rows: Indices) -> Indices:
        return np.frombuffer(self._frames, np.intc)[rows].astype(np.intp)


class _Names:
    """Numbers for digests, which may be given whole or by the digits in the keys of records."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = len(self.names)
            self.names.append(name)
            self._numbers[name] = self._numbers[name.removeprefix("sha256:")[:_DIGITS]] = number
        return number

    def known(self, name: str) -> int:
        return self._numbers.get(name, -1)


def _key(sha256: str, model: int, plan: int) -> bytes:
    return bytes.fromhex(sha256) + b"%d.%d" % (model, plan)
