"""What can be set, with its default and its meaning. Never built at import.

Each setting is an environment variable ``IMAGEWARDEN_<SECTION>__<NAME>``, or an entry of a TOML
file named by ``IMAGEWARDEN_CONFIG``; the environment wins. Names end in their unit.
``settings_load`` makes them from what the process was given.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    FilePath,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from worker.kafka_security import KafkaSecurity
from worker.settings_values import HostPorts, Listed, Port, Ports, RandomKey, RedisUrl, Section

PREFIX = "IMAGEWARDEN_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"


class KafkaSettings(Section):
    bootstrap: Listed = ("localhost:9092",)
    """Brokers to begin with, as host:port."""
    group: str = "imagewarden"
    """The consumer group that workers share the work in."""
    requests_topic: str = "moderation.requests"
    """Read from."""
    verdicts_topic: str = "moderation.verdicts"
    """A verdict for each request."""
    dead_letters_topic: str = "moderation.dead-letters"
    """Records that are no requests, or that no process survives."""
    retries_topic: str = "moderation.retries"
    """Requests that will be tried again."""
    backfill_topic: str | None = None
    """Requests that wait for all others: read where this is set."""
    embeddings_topic: str = "moderation.embeddings"
    """What is kept of each image."""
    feedback_topic: str = "moderation.feedback"
    """What people decided: read by `imagewarden feedback`, and by no worker."""
    session_timeout_seconds: PositiveFloat = 30.0
    """How long a worker may be silent before its partitions go to another."""
    request_max_bytes: PositiveInt = 1_000_000
    """The largest request taken; larger ones are dead letters. Brokers default to 1 MiB."""
    message_max_bytes: PositiveInt = 2**20
    """The largest message the topics take: a dead letter is a request and the reason."""
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = "gzip"
    """Of all that is published. Every reader knows gzip; zstd takes as little space in a third of
    the time, lz4 and snappy more in less: their readers may have to install its library."""
    linger_seconds: Annotated[float, Field(ge=0)] = 0.02
    """How long what a worker publishes waits at most for more to go with, which saves processor
    time and space. It waits only while much is published. An answer waits twice where the image is
    new: its embedding goes first."""
    commit_interval_seconds: PositiveFloat = 0.5
    """Offsets are committed so often; what lies in between is read again after a crash."""
    transaction_interval_seconds: PositiveFloat = 0.1
    """With exactly_once: how long verdicts wait for others to share their transaction."""
    transaction_timeout_seconds: PositiveFloat = 30.0
    """With exactly_once: when brokers give up the transaction of a worker that died. Until then
    those who read committed data wait."""
    transactional_id: str | None = None
    """With exactly_once: one for each worker that runs at a time, kept across its restarts, so
    that its unfinished transaction ends at once; unset, made of the group and `worker`."""


class RedisSettings(Section):
    url: RedisUrl | None = None
    """Unset: only the in-process tier. User and password go into the URL; rediss:// is TLS, with
    an authority of your own as rediss://…/0?ssl_ca_certs=/path/to/ca.pem."""
    timeout_seconds: PositiveFloat = 0.1
    """Slower than this is as good as away: the image is fetched instead."""
    breaker_seconds: PositiveFloat = 2.0
    """How long Redis is left alone after it failed."""
    prefix: str = "imagewarden:"
    """Of every key."""


class CacheSettings(Section):
    memory_max_bytes: PositiveInt = 64 * 2**20
    """What the in-process tier holds, overheads included."""
    embedding_ttl_seconds: PositiveFloat = 30 * 86400.0
    """How long an embedding is cached."""
    url_ttl_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long a URL is believed to serve what it served; 0 turns that off."""
    url_revalidate_seconds: Annotated[float, Field(ge=0)] = 86400.0
    """How long a URL with an ETag is remembered, to ask whether it changed."""
    url_key: RandomKey | None = None
    """Keys the hashes that stand in for URLs. Unset, each process takes a random one, and workers
    do not share what they know of URLs (of contents they do)."""


class FetchSettings(Section):
    total_timeout_seconds: PositiveFloat = 15.0
    """For a download with all its redirects and retries."""
    connect_timeout_seconds: PositiveFloat = 3.0
    """For connecting, in one attempt."""
    read_timeout_seconds: PositiveFloat = 5.0
    """Nothing received for so long ends an attempt, and leaves time for another."""
    max_bytes: PositiveInt = 20 * 2**20
    """Of a body, before and after it is decompressed."""
    max_redirects: Annotated[int, Field(ge=0, le=3)] = 3
    """Each is judged anew; 0 follows none."""
    attempts: PositiveInt = 3
    """Tries in all, the first included."""
    ports: Ports = (80, 443)
    """Ports that may be connected to."""
    allow: HostPorts = ()
    """host:port pairs that may be reached although they are not public; exactly these."""
    egress_proxy: SecretStr | None = None
    """An HTTP proxy that everything goes through, as http://[user:password@]host:port. Addresses
    are judged here all the same."""
    ca_file: FilePath | None = None
    """PEM file of certificate authorities that are believed besides the public ones."""


class HostSettings(Section):
    """What one image host may take of a worker."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the images in work, at most so many are from one host. 1 where all come from one."""
    failures: PositiveInt = 5
    """So many in a row that may pass (no answer, 5xx), and the host is left alone."""
    silence_seconds: PositiveFloat = 3.0
    """Using its share, and ending no download for so long, it is left alone too."""
    breaker_seconds: PositiveFloat = 10.0
    """How long it is left alone: its requests are undetermined, and tried again later."""


class RetrySettings(Section):
    attempts: Annotated[int, Field(ge=0)] = 3
    """How often a request is tried again when its failure may pass; 0 turns that off."""
    delay_seconds: PositiveFloat = 60.0
    """Before each of them."""


class DecodeSettings(Section):
    processes: PositiveInt = 2
    """Children that decode; about one for each core that the model leaves."""
    timeout_seconds: PositiveFloat = 5.0
    """For one image; then its child is killed."""
    memory_bytes: PositiveInt = 512 * 2**20
    """Address space a child may take beyond the interpreter's own."""
    max_pixels: PositiveInt = 50_000_000
    """Width times height of one frame; larger images are not decoded."""
    perceptual_hash: bool = True
    """PDQ, in verdicts and for the `lists` of policies; 0.2 ms of processor time and more, by the
    image's size."""


class ModelSettings(Section):
    name: str | None = None
    """`pocket`, or an open_clip name and tag such as ViT-L-14/datacomp_xl_s13b_b90k. Unset, it is
    the one that the first policy was written for."""
    checkpoint: Path | None = None
    """Weights of your own (safetensors, or a state dict), under `name`."""
    config: str | None = None
    """What the checkpoint's weights fit: an open_clip model name or a JSON config file."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:NUMBER; auto takes CUDA where there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp16 on CUDA, fp32 elsewhere."""
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """What runs the image tower. auto: ONNX Runtime on a CPU in fp32, where `imagewarden[onnx]` is
    installed and its embeddings are torch's; else torch."""
    batch_rows: PositiveInt | None = None
    """Rows in a batch; unset, what the model runs fastest with on this device."""
    batch_wait_seconds: Annotated[float, Field(ge=0)] = 0
    """The longest the first image of a batch waits for others while the model could begin. Under
    load batches fill by themselves, behind those that it works on."""


class WorkSettings(Section):
    in_flight: PositiveInt = 256
    """Records between poll and commit."""
    images: PositiveInt = 48
    """Images between the start of their download and the end of their embedding."""
    low_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the images in work, at most so many are tried again or from a backfill, so that live
    requests find a place. 1 for a worker that does nothing live."""
    drain_seconds: PositiveFloat = 20.0
    """How long work in flight may take to finish when stopping or losing partitions."""
    max_rejected_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """More dead letters than this among recent records, and the worker stops; 1 never stops."""
    rejected_window: PositiveInt = 200
    """How many records are recent."""
    poison_deaths: Annotated[int, Field(ge=1, le=100)] = 3
    """Processes that may die with a record in flight before it is tried alone."""


class HttpSettings(Section):
    """Where /metrics, /livez and /readyz are served."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is all of them, unix:PATH a socket in the file system."""
    port: Port = 9464
    """0 takes a free one, which the log names."""


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the worker's own lines; other libraries log from warning on."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: colours on a terminal, JSON lines elsewhere."""
    worker: bool = False
    """Whether each line names the worker; those of `--processes` do."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        case_sensitive=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    policies: Listed = ("policies/default.yaml",)
    """Policy files; requests that name none get the first."""
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Named in verdicts and logs, and as the consumer's client id."""
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """exactly_once: who reads committed data sees each verdict once, in the order of the requests;
    a slow image then holds up those behind it."""
    kafka: KafkaSettings = KafkaSettings()
    kafka_security: KafkaSecurity = KafkaSecurity()
    redis: RedisSettings = RedisSettings()
    cache: CacheSettings = CacheSettings()
    fetch: FetchSettings = FetchSettings()
    host: HostSettings = HostSettings()
    retry: RetrySettings = RetrySettings()
    decode: DecodeSettings = DecodeSettings()
    model: ModelSettings = ModelSettings()
    work: WorkSettings = WorkSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if file:
            sources += (TomlConfigSettingsSource(settings_cls, Path(file)),)
        return sources
