"""Frozen values that pass between stages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  #: [rows, height, width, 3], RGB
Float16Rows = NDArray[np.float16]  #: [rows, dimension]
Float32Rows = NDArray[np.float32]  #: [rows, dimension]
Headers = tuple[tuple[str, bytes], ...]


def digest_of(value: object) -> str:
    """``sha256:`` digest of a JSON-able value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


@lru_cache(maxsize=64)  # asked for with every image, and a process sees few of them
def _digest_of_fields(value: PreprocessSpec | FramePlan) -> str:
    return digest_of(asdict(value))


@lru_cache(maxsize=64)
def digest_of_model(weights: str, preprocess: str, precision: str) -> str:
    """What ``ModelInfo.digest`` is, from the digests of the two and the precision."""
    return digest_of({"weights": weights, "preprocess": preprocess, "precision": precision})


# ---------------------------------------------------------------- records


class TopicPartition(NamedTuple):
    topic: str
    partition: int


_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read, with where it was read: offsets travel with the payload."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = 0
    unreadable: str | None = None  #: why there is nothing but its coordinates

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    @property
    def trace_context(self) -> Headers:
        """W3C trace context, carried on by what is said of it."""
        return tuple(header for header in self.headers if header[0] in _TRACE_HEADERS)


class OffsetAndMetadata(NamedTuple):
    """What a group commits of a partition: the offset to read next, and a note beside it."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message to be published."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


# ---------------------------------------------------------------- the model


Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How a model wants its pixels; what open_clip calls its preprocess config.

    ``size`` is (height, width). ``resize_mode``: ``shortest`` scales the shorter side to the size
    and crops the centre, ``longest`` scales the longer side and pads with ``fill``, ``squash``
    ignores the aspect. ``mean`` and ``std`` are per channel, on pixels in 0..1; they are applied
    by the encoder, on its device, so pixels travel as uint8.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill: int = 0

    @property
    def digest(self) -> str:
        return _digest_of_fields(self)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a verdict says of the model, and what a margin depends on.

    ``logit_scale`` is the factor on cosines (already exponentiated).
    """

    name: str
    weights_digest: str
    preprocess: PreprocessSpec
    precision: str
    dimension: int
    logit_scale: float

    @property
    def space(self) -> str:
        """Digest of what an embedding means, whatever precision it was computed in."""
        return digest_of_model(self.weights_digest, self.preprocess.digest, "any")

    @property
    def digest(self) -> str:
        """Equal digests mean comparable embeddings."""
        return digest_of_model(self.weights_digest, self.preprocess.digest, self.precision)


class DeviceMemory(NamedTuple):
    """Bytes of a GPU's memory: what this process's tensors take, what anybody has taken, all."""

    device: str
    allocated: int
    used: int
    size: int


# ---------------------------------------------------------------- work


class Load(NamedTuple):
    """How full a stage is: places taken, places in all, and images that wait for one."""

    busy: int
    places: int
    waiting: int = 0


# ---------------------------------------------------------------- images


Views = Literal["centre", "pad", "tiles"]


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Which rows of an image are embedded.

    At most ``max_frames`` frames, spread over the whole length of an animation, the first always
    among them. Of each frame, ``views``: ``centre`` is the model's own transform, ``pad`` shows
    all of a long image at a smaller scale, ``tiles`` covers its longer side with up to
    ``max_tiles`` squares. An image gives ``frames × views`` rows.
    """

    max_frames: int = 8
    views: Views = "centre"
    max_tiles: int = 4

    @property
    def digest(self) -> str:
        return _digest_of_fields(self)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image besides its embedding.

    ``sha256`` is the hex digest of its bytes; ``perceptual_hash`` the PDQ hash of its first frame
    (256 bits in hex), None where it was not computed or the frame is ``too_plain`` for one;
    ``width`` and ``height`` are in pixels as shown, after EXIF orientation; ``rows`` gives, for
    each row of pixels and of the embedding, the index of the frame it was taken from.
    """

    sha256: str
    perceptual_hash: str | None
    media_type: str
    width: int
    height: int
    bytes: int
    frames: int
    rows: tuple[int, ...]
    too_plain: bool = False

    @property
    def unhashed(self) -> bool:
        """Whether nobody looked for a perceptual hash, so that there may be one."""
        return self.perceptual_hash is None and not self.too_plain


@dataclass(frozen=True, slots=True)
class Fetched:
    """A downloaded body, and the validator to ask for it again with."""

    body: bytes
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class NotModified:
    """The server says that the content is still what its ETag named."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels at the model's size, ``[rows, height, width, 3]``, and the facts of the image."""

    pixels: Pixels
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What an embedding depends on: the bytes, the model with its preprocessing, the plan."""

    sha256: str
    model: str
    plan: str

    def __str__(self) -> str:
        # 128 bits of each digest: enough to keep keys apart, half the memory in Redis
        model, plan = (d.removeprefix("sha256:")[:32] for d in (self.model, self.plan))
        return f"{self.sha256}:{model}:{plan}"


@dataclass(frozen=True, slots=True)
class Embedding:
    """What is kept of an image. Scores are computed from these float16 values and no others."""

    key: EmbeddingKey
    rows: Float16Rows
    facts: ImageFacts


@dataclass(frozen=True, slots=True)
class Seen:
    """What a URL served, and when: enough to skip the download, or to ask whether it changed.

    ``fetched_at`` is in seconds since the epoch.
    """

    sha256: str
    etag: str | None
    fetched_at: float


CacheTier = Literal["memory", "redis", "in_flight", "none"]
