"""How to reach brokers that want TLS, a login, or both."""

from __future__ import annotations

import ssl
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, FilePath, SecretStr, model_validator

from worker.errors import Misconfigured
from worker.settings_values import Section

_TLS = ("ca_file", "cert_file", "key_file", "key_password")
_SASL = ("sasl_mechanism", "sasl_username", "sasl_password")


def _upper(written: object) -> object:
    return written.upper() if isinstance(written, str) else written


class KafkaSecurity(Section):
    protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = "PLAINTEXT"
    """As the brokers' listener has it: PLAINTEXT, SSL (which is TLS), SASL_PLAINTEXT, SASL_SSL."""
    ca_file: FilePath | None = None
    """PEM of the authorities that sign the brokers' certificates; unset, the system's."""
    cert_file: FilePath | None = None
    """PEM of this client's certificate, where the brokers ask for one."""
    key_file: FilePath | None = None
    """PEM of its private key; unset, it is in `cert_file`."""
    key_password: SecretStr | None = None
    """Of the private key, where it is encrypted."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How to log in. PLAIN sends the password itself, so it belongs under SASL_SSL."""
    sasl_username: str | None = None
    """Who logs in."""
    sasl_password: SecretStr | None = None
    """With which password."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self._login and (missing := [name for name in _SASL if not getattr(self, name)]):
            raise ValueError(f"with PROTOCOL {self.protocol}, set {_listed(missing)}")
        used = {*(_TLS if self._tls else ()), *(_SASL if self._login else ())}
        if unused := [n for n in _TLS + _SASL if n not in used and getattr(self, n) is not None]:
            raise ValueError(f"with PROTOCOL {self.protocol}, nothing uses {_listed(unused)}")
        if self.cert_file is None and (self.key_file or self.key_password):
            raise ValueError("a key is of no use without CERT_FILE, the certificate it belongs to")
        return self

    @property
    def _tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def _login(self) -> bool:
        return self.protocol.startswith("SASL")

    def options(self) -> dict[str, Any]:
        """What every Kafka client of ours takes as its ``options``.

        Raises ``Misconfigured`` for files that hold no certificates, or not the key.
        """
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self._tls:
            options["ssl_context"] = self._ssl_context()
        if self._login and self.sasl_password is not None:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise Misconfigured(
                f"IMAGEWARDEN_KAFKA_SECURITY__CA_FILE: {self.ca_file} holds no certificates in "
                f"PEM ({error})"
            ) from None
        if self.cert_file is not None:
            # never None, for which OpenSSL would ask on the terminal
            password = self.key_password.get_secret_value() if self.key_password else ""
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password)
            except OSError as error:
                raise Misconfigured(
                    f"IMAGEWARDEN_KAFKA_SECURITY__CERT_FILE: {self.cert_file} and its key do not "
                    f"load ({error}); check the files, and KEY_PASSWORD"
                ) from None
        return context


def _listed(names: list[str]) -> str:
    return ", ".join(name.upper() for name in names)
