"""A policy file that is to be edited: read once, checked before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.authoring.edit import replace_file
from worker.errors import Misconfigured
from worker.policy import Policy
from worker.policy_yaml import InvalidPolicy, parse_policy, read_policy


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy as it was read, so that an edit made meanwhile is not written over."""

    path: Path
    raw: bytes
    policy: Policy

    @classmethod
    def read(cls, path: Path) -> PolicyFile:
        """Targets need no values yet. Raises ``InvalidPolicy``."""
        raw = read_policy(path)
        return cls(path, raw, parse_policy(raw, str(path), unsolved=True))

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8-sig")

    def write(self, text: str) -> None:
        """Raises ``Misconfigured``, and leaves the file as it is, where that would be invalid."""
        mark = self.raw[: len(self.raw) - len(self.text.encode())]  # of byte order, if any
        content = mark + text.encode()
        try:
            parse_policy(content, str(self.path), unsolved=True)
        except InvalidPolicy as error:
            raise Misconfigured(
                f"nothing was written, since with this the policy would be invalid:\n{error}"
            ) from None
        if read_policy(self.path) != self.raw:
            raise Misconfigured(
                f"nothing was written, since {self.path} was edited meanwhile; do it again"
            )
        try:
            replace_file(self.path, content)
        except OSError as error:
            raise Misconfigured(
                f"nothing was written, since {self.path} cannot be replaced ({error.strerror})"
            ) from error
