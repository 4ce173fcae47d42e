"""Environment and file to frozen settings. Never built at import.

Each setting is an environment variable ``IMAGEWARDEN_<SECTION>__<NAME>``, or an entry of a TOML
file named by ``IMAGEWARDEN_CONFIG``; the environment wins. Names end in their unit. Unknown names
are refused, in the file and in the environment: a typo must not mean the default.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from worker.egress import EgressPolicy
from worker.errors import Misconfigured

PREFIX = "IMAGEWARDEN_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"

_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_KEY_BYTES = 16


def _split(value: object) -> object:
    """``a,b`` in the environment, a list in the file."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _of_redis(url: SecretStr) -> SecretStr:
    written = url.get_secret_value()
    if not written.startswith(_REDIS_SCHEMES):
        raise ValueError(f"the URL must begin with one of {', '.join(_REDIS_SCHEMES)}")
    try:
        _ = urlsplit(written).port
    except ValueError:  # whose message quotes what may be a password
        raise ValueError(
            "the URL has no valid port; in a password, write / # ? @ : as %2F %23 %3F %40 %3A"
        ) from None
    return url


def _long_enough(key: SecretStr) -> SecretStr:
    if (length := len(key.get_secret_value().encode())) < _KEY_BYTES:
        raise ValueError(f"it has {length} bytes; write at least {_KEY_BYTES}, chosen at random")
    return key


def _literal(pairs: tuple[str, ...]) -> tuple[str, ...]:
    try:
        EgressPolicy(allow=pairs)
    except Misconfigured as error:
        raise ValueError(str(error)) from None
    return pairs


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    bootstrap: Listed = ("localhost:9092",)
    """Brokers to begin with, as host:port."""
    group: str = "imagewarden"
    """The consumer group that workers share the work in."""
    requests_topic: str = "moderation.requests"
    """Read from."""
    verdicts_topic: str = "moderation.verdicts"
    """A verdict for each request."""
    dead_letters_topic: str = "moderation.dead-letters"
    """Records that are no requests."""
    embeddings_topic: str = "moderation.embeddings"
    """What is kept of each image."""
    session_timeout_seconds: PositiveFloat = 30.0
    """How long a worker may be silent before its partitions go to another."""
    request_max_bytes: PositiveInt = 1_000_000
    """The largest request taken; larger ones are dead letters. Brokers default to 1 MiB."""
    message_max_bytes: PositiveInt = 2**20
    """The largest message the topics take: a dead letter is a request and the reason."""
    commit_interval_seconds: PositiveFloat = 0.5
    """Offsets are committed so often; what lies in between is read again after a crash."""


class RedisSettings(_Section):
    url: Annotated[SecretStr, AfterValidator(_of_redis)] | None = None
    """Unset: only the in-process tier. rediss:// for TLS; user and password in the URL."""
    timeout_seconds: PositiveFloat = 0.1
    """Slower than this is as good as away: the image is fetched instead."""
    breaker_seconds: PositiveFloat = 2.0
    """How long Redis is left alone after it failed."""
    prefix: str = "imagewarden:"
    """Of every key."""


class CacheSettings(_Section):
    memory_max_bytes: PositiveInt = 64 * 2**20
    """What the in-process tier holds, overheads included."""
    embedding_ttl_seconds: PositiveFloat = 30 * 86400.0
    """How long an embedding is cached."""
    url_ttl_seconds: Annotated[float, Field(ge=0)] = 600.0
    """How long a URL is believed to serve what it served; 0 turns that off."""
    url_revalidate_seconds: Annotated[float, Field(ge=0)] = 86400.0
    """How long a URL with an ETag is remembered, to ask whether it changed."""
    url_key: Annotated[SecretStr, AfterValidator(_long_enough)] | None = None
    """Keys the hashes that stand in for URLs. Unset, each process takes a random one, and workers
    do not share what they know of URLs (of contents they do)."""


class FetchSettings(_Section):
    total_timeout_seconds: PositiveFloat = 15.0
    """For a download with all its redirects and retries."""
    connect_timeout_seconds: PositiveFloat = 3.0
    """For connecting, in one attempt."""
    max_bytes: PositiveInt = 20 * 2**20
    """Of a body, before and after it is decompressed."""
    max_redirects: Annotated[int, Field(ge=0, le=10)] = 3
    """Each is judged anew; 0 follows none."""
    attempts: PositiveInt = 3
    """Tries in all, the first included."""
    ports: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)] = (80, 443)
    """Ports that may be connected to."""
    allow: Annotated[Listed, AfterValidator(_literal)] = ()
    """host:port pairs that may be reached although they are not public; exactly these."""


class DecodeSettings(_Section):
    processes: PositiveInt = 2
    """Children that decode; about one for each core that the model leaves."""
    timeout_seconds: PositiveFloat = 5.0
    """For one image; then its child is killed."""
    memory_bytes: PositiveInt = 512 * 2**20
    """Address space a child may take beyond the interpreter's own."""
    max_pixels: PositiveInt = 50_000_000
    """Width times height of one frame; larger images are not decoded."""


class ModelSettings(_Section):
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
    batch_rows: PositiveInt | None = None
    """Rows in a batch; unset, what the model runs fastest with on this device."""
    batch_wait_seconds: Annotated[float, Field(ge=0)] = 0.005
    """The longest the first image of a batch waits for others."""


class WorkSettings(_Section):
    in_flight: PositiveInt = 256
    """Records between poll and commit."""
    images: PositiveInt = 48
    """Images between the start of their download and the end of their embedding."""
    drain_seconds: PositiveFloat = 20.0
    """How long work in flight may take to finish when stopping or losing partitions."""


class HttpSettings(_Section):
    """Where /metrics, /livez and /readyz are served."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is all of them."""
    port: Port = 9464
    """0 takes a free one, which the log names."""


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the worker's own lines; other libraries log from warning on."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: colours on a terminal, JSON lines elsewhere."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        case_sensitive=False,
        use_attribute_docstrings=True,
    )

    policies: Listed = ("policies/default.yaml",)
    """Policy files; requests that name none get the first."""
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Named in verdicts and logs, and as the consumer's client id."""
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    cache: CacheSettings = CacheSettings()
    fetch: FetchSettings = FetchSettings()
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


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this process; ``overrides`` (of the command line) win over all.

    Raises ``Misconfigured`` with a sentence for each wrong setting, naming the variable.
    """
    _refuse_unknown_variables()
    file = os.environ.get(CONFIG_VARIABLE)
    if file and not Path(file).is_file():
        raise Misconfigured(f"{CONFIG_VARIABLE} names {file}, which is not a file")
    try:
        return Settings(**(overrides or {}))
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{file} is not TOML: {error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise Misconfigured("\n".join(_sentence(problem) for problem in problems)) from None


def _sentence(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"] if isinstance(part, str)]
    known = list(variables())
    name = PREFIX + "__".join(location).upper()
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(location)} is no setting{_nearest(name, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{name} is wrong: {message}"


def variables() -> Iterator[str]:
    """The environment variable of each setting."""
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, _Section):
            for inner in annotation.model_fields:
                yield f"{PREFIX}{name}__{inner}".upper()
        else:
            yield f"{PREFIX}{name}".upper()


def _refuse_unknown_variables() -> None:
    known = {*variables(), CONFIG_VARIABLE}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise Misconfigured(f"{name} is no setting{_nearest(name, sorted(known))}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=1)
    return f"; did you mean {near[0]}?" if near else "; README.md lists them"
