"""The values that settings take, with the sentence for each one that is none."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from worker.egress import EgressPolicy
from worker.errors import Misconfigured

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
HostPorts = Annotated[Listed, AfterValidator(_literal)]
Port = Annotated[int, Field(ge=0, le=65535)]
Ports = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)]
RedisUrl = Annotated[SecretStr, AfterValidator(_of_redis)]
RandomKey = Annotated[SecretStr, AfterValidator(_long_enough)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )
