"""The narrow Protocols at the seams, and what they raise. Real parts and fakes are held to the same
contract tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from worker.types import (
    Decoded,
    DeviceMemory,
    Fetched,
    Float32Rows,
    FramePlan,
    Message,
    ModelInfo,
    NotModified,
    OffsetAndMetadata,
    Pixels,
    PreprocessSpec,
    Record,
    TopicPartition,
)


class Encoder(Protocol):
    """Turns pixels and texts into unit vectors of one space. Blocking; called from threads."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def engine(self) -> str:
        """What computes the embeddings of images; they do not depend on it."""
        ...

    @property
    def preferred_batch(self) -> int:
        """Rows in a batch that this device runs fastest with."""
        ...

    def encode_images(self, pixels: Pixels) -> Float32Rows:
        """[n, height, width, 3] uint8 to [n, dimension], rows of length one; n may be 0.

        Raises ``DeviceOutOfMemory``.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
        """n texts to [n, dimension], rows of length one; n may be 0."""
        ...

    def device_memory(self) -> DeviceMemory | None:
        """None where the device has no memory of its own, or does not tell."""
        ...


class Source(Protocol):
    """Where records come from. All methods are called from the event loop."""

    async def poll(self, room: int) -> Sequence[Record]:
        """At most ``room`` records, or none after a short wait.

        Must be called again and again, with ``room`` 0 when there is no room, or the membership
        of the group is lost.
        """
        ...

    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata | None]:
        """What the group has committed; None where it never has."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Raises nothing for partitions that are no longer ours: their new owner reads them
        again."""
        ...

    def membership(self) -> object:
        """What tells the broker, in a transaction, that the committed partitions are still ours."""
        ...

    def lag(self) -> Mapping[TopicPartition, int]:
        """Records behind the end of each assigned partition, as last seen; no I/O."""
        ...

    async def close(self) -> None:
        """Leave the group."""
        ...


class TooLarge(Exception):
    """The broker takes no message of this size."""


class Undelivered(Exception):
    """The broker did not take it, and whether it has it is not known."""


class Publisher(Protocol):
    async def publish(self, message: Message) -> None:
        """Returns once the broker has acknowledged the message; raises if it never does, and
        ``TooLarge`` if it is larger than it will ever take."""
        ...

    def fits(self, message: Message) -> bool:
        """Whether the broker takes a message of this size."""
        ...

    async def close(self) -> None: ...


class Aborted(Exception):
    """Nothing of the transaction was committed; the same work may be tried again."""


class Fenced(Exception):
    """Another process has taken over the transactional id; this one must end."""


class Transactions(Protocol):
    async def commit(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: object,
    ) -> None:
        """All the messages and the offsets, or nothing. ``membership`` is the source's.

        Raises ``Aborted``, after which it may be called again, or what ends the process:
        ``Fenced``, ``Undelivered``, or ``TooLarge``, before anything is sent.
        """
        ...

    async def close(self) -> None: ...


class Fetcher(Protocol):
    async def fetch(
        self,
        url: str,
        *,
        etag: str | None = None,
        worth_retrying: Callable[[], bool] = lambda: True,
    ) -> Fetched | NotModified:
        """Download ``url``; after a failure that may pass, ``worth_retrying`` says whether to try
        again. Raises ``Unexaminable``."""
        ...

    async def close(self) -> None: ...


class Decoder(Protocol):
    async def decode(
        self, body: bytes, sha256: str, spec: PreprocessSpec, plan: FramePlan
    ) -> Decoded:
        """Raises ``Unexaminable``."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """A tier of the cache: bytes by key, with a time to live in seconds. Failures are misses."""

    async def get(self, keys: Sequence[str]) -> Sequence[bytes | None]: ...

    async def put(self, items: Iterable[tuple[str, bytes, float]]) -> None: ...

    async def delete(self, keys: Sequence[str]) -> None: ...

    async def close(self) -> None: ...


class Window(NamedTuple):
    """Whose requests are counted together, and over how long."""

    policy: str
    tenant: str | None
    per_seconds: float


class Counted(NamedTuple):
    """A request, by a digest of its id; ``at`` is in seconds since the epoch."""

    window: Window
    request: bytes
    blocked: bool
    at: float


class Counts(NamedTuple):
    """Distinct requests, and those among them that would be blocked."""

    requests: int
    blocked: int


class CountsAway(Exception):
    """The fleet's counts are not to be had now. Whether what was sent is among them is not
    known."""


class FleetCounts(Protocol):
    async def exchange(
        self, added: Sequence[Counted], asked: Sequence[Window], now: float
    ) -> Sequence[Counts]:
        """Adds, and then counts each of the windows that end ``now``, to within a twelfth of its
        length. Raises ``CountsAway``."""
        ...

    async def close(self) -> None: ...
