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

from pydantic import (
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

from worker.errors import Misconfigured

PREFIX = "IMAGEWARDEN_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"


def _split(value: object) -> object:
    """``a,b`` in the environment, a list in the file."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    bootstrap: Listed = ("localhost:9092",)
    group: str = "imagewarden"
    requests_topic: str = "moderation.requests"
    verdicts_topic: str = "moderation.verdicts"
    dead_letters_topic: str = "moderation.dead-letters"
    embeddings_topic: str = "moderation.embeddings"
    #: How long a worker may be silent before its partitions go to another.
    session_timeout_seconds: PositiveFloat = 30.0
    #: The largest request taken; larger ones are dead letters. Brokers default to 1 MiB.
    request_max_bytes: PositiveInt = 1_000_000
    #: The largest message the topics take: a dead letter is a request and the reason.
    message_max_bytes: PositiveInt = 2**20
    commit_interval_seconds: PositiveFloat = 0.5


class RedisSettings(_Section):
    #: None: only the in-process tier. rediss:// for TLS; user and password in the URL.
    url: SecretStr | None = None
    #: Slower than this is as good as away: the image is fetched instead.
    timeout_seconds: PositiveFloat = 0.1
    #: How long Redis is left alone after it failed.
    breaker_seconds: PositiveFloat = 2.0
    prefix: str = "imagewarden:"


class CacheSettings(_Section):
    memory_max_bytes: PositiveInt = 64 * 2**20
    embedding_ttl_seconds: PositiveFloat = 30 * 86400.0
    #: How long a URL is believed to serve what it served; 0 turns that off.
    url_ttl_seconds: Annotated[float, Field(ge=0)] = 600.0
    #: How long a URL with an ETag is remembered, to ask whether it changed.
    url_revalidate_seconds: Annotated[float, Field(ge=0)] = 86400.0
    #: Keys the hashes that stand in for URLs. Unset, each process takes a random one, and workers
    #: do not share what they know of URLs (of contents they do).
    url_key: SecretStr | None = None


class FetchSettings(_Section):
    total_timeout_seconds: PositiveFloat = 15.0
    connect_timeout_seconds: PositiveFloat = 3.0
    max_bytes: PositiveInt = 20 * 2**20
    max_redirects: Annotated[int, Field(ge=0, le=10)] = 3
    attempts: PositiveInt = 3
    #: Ports that may be connected to.
    ports: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)] = (80, 443)
    #: host:port pairs that may be reached although they are not public; exactly these.
    allow: Listed = ()


class DecodeSettings(_Section):
    processes: PositiveInt = 2
    timeout_seconds: PositiveFloat = 5.0
    #: Address space a child may take beyond the interpreter's own.
    memory_bytes: PositiveInt = 512 * 2**20
    max_pixels: PositiveInt = 50_000_000


class ModelSettings(_Section):
    #: `pocket`, or an open_clip name and tag such as ViT-L-14/datacomp_xl_s13b_b90k. Unset, it is
    #: the one that the first policy was written for.
    name: str | None = None
    #: Weights of your own (safetensors, or a state dict), under `name`.
    checkpoint: Path | None = None
    #: What the checkpoint's weights fit: an open_clip model name or a JSON config file.
    config: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    #: Rows in a batch; unset, what the model runs fastest with on this device.
    batch_rows: PositiveInt | None = None
    #: The longest the first image of a batch waits for others.
    batch_wait_seconds: Annotated[float, Field(ge=0)] = 0.005


class WorkSettings(_Section):
    #: Records between poll and commit.
    in_flight: PositiveInt = 256
    #: Images between the start of their download and the end of their embedding.
    images: PositiveInt = 48
    #: How long work in flight may take to finish when stopping or losing partitions.
    drain_seconds: PositiveFloat = 20.0


class HttpSettings(_Section):
    """Where /metrics, /livez and /readyz are served."""

    host: str = "127.0.0.1"
    port: Port = 9464


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: auto: colours on a terminal, JSON lines elsewhere.
    format: Literal["auto", "console", "json"] = "auto"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        case_sensitive=False,
    )

    #: Policy files; requests that name none get the first.
    policies: Listed = ("policies/default.yaml",)
    #: Named in verdicts and logs, and as the consumer's client id.
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
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
    message = problem["msg"][0].lower() + problem["msg"][1:]
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
