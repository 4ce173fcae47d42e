"""Certificates of our own making, by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LOOPBACK = "IP:127.0.0.1,DNS:localhost"


class Authority:
    """Signs what servers and clients show; ``certificate`` is what they are checked against."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("certificates need the openssl command, and it is not on the PATH")
        self._folder = folder
        self._key = folder / f"{name}.key"
        self.certificate = folder / f"{name}.pem"
        _openssl(
            *("req", "-x509", "-subj", f"/CN={name}", "-days", "1"),
            *_new_key(self._key),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-out", str(self.certificate)),
        )

    def signed(self, name: str, *, alternative: str = LOOPBACK, password: str = "") -> Path:
        """PEM of a certificate and its key, the latter encrypted where there is a password."""
        key, request, pem = (self._folder / f"{name}.{kind}" for kind in ("key", "csr", "both"))
        _openssl(
            *("req", "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}"),
            *_new_key(key, password),
            *("-out", str(request)),
        )
        certificate = _openssl(
            *("x509", "-req", "-in", str(request), "-days", "1", "-copy_extensions", "copyall"),
            *("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"),
        )
        pem.write_text(key.read_text() + certificate)
        return pem


def _new_key(file: Path, password: str = "") -> tuple[str, ...]:
    secret = ("-passout", f"pass:{password}") if password else ("-nodes",)
    return ("-newkey", "rsa:2048", "-keyout", str(file), *secret)


def _openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
