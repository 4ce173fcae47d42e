"""The files that a policy names: heads, lists of hashes, images to test it with. They lie in its
folder or below, so that a policy travels whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from worker.heads import parse_head
from worker.policy import Head
from worker.yaml_values import Located, Problem

MAX_HEAD_BYTES: Final = 1024 * 1024  # 8192 dimensions take 32 KiB, and provenance the rest
MAX_LIST_BYTES: Final = 16 * 1024 * 1024  # some 250,000 hashes
_SHOWN_LINES: Final = 10
_PDQ: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class PolicyFiles:
    """Reads files beside a policy, and notes what is wrong with them.

    ``contents`` has the digest of each file that was asked for, by its name in the policy, None
    where it could not be read: a policy whose files have other digests by now is another one.
    ``given`` has the content of files that are about to be written, which count in place of what
    is there.
    """

    folder: Path
    contents: dict[str, str | None] = field(default_factory=dict)
    given: Mapping[str, bytes] = field(default_factory=dict)

    def changed(self) -> bool:
        """Whether any file that was asked for is another one by now."""
        return any(
            _digest(_read(self.folder / name)) != digest for name, digest in self.contents.items()
        )

    def path(self, at: Located) -> Path | None:
        """Where the file lies that ``at`` names; None where it is absent or refused."""
        if not (name := at.text()):
            return None
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            at.refuse(
                f"{at.name} is {name!r}, which leads out of the policy's folder; put the file "
                f"beside the policy and write its path from there, with / between folders"
            )
            return None
        return self.folder / name

    def head(self, at: Located, weight: float) -> Head | None:
        if (raw := self._content(at, MAX_HEAD_BYTES)) is None:
            return None
        name = at.text()
        try:
            return parse_head(raw, name, weight)
        except ValueError as error:
            at.refuse(f"{name} {error}; write it anew with `imagewarden policy fit-head`")
            return None

    def hashes(self, at: Located, problems: list[Problem]) -> frozenset[str]:
        """PDQ hashes, one a line. ``problems`` gets those of the file's lines."""
        if (raw := self._content(at, MAX_LIST_BYTES)) is None:
            return frozenset()
        path = str(self.folder / at.text())
        hashes = set()
        wrong = []
        for number, line in enumerate(raw.decode("utf-8-sig", "replace").splitlines(), start=1):
            if not (text := line.partition("#")[0].strip().lower()):
                continue
            if _PDQ.fullmatch(text):
                hashes.add(text)
            else:
                wrong.append((number, text))
        problems += (
            Problem(
                path,
                number,
                1,
                f"{text[:80]!r} is no PDQ hash; write 64 hexadecimal digits, or # before a comment",
            )
            for number, text in wrong[:_SHOWN_LINES]
        )
        if unsaid := wrong[_SHOWN_LINES:]:
            message = f"{len(unsaid)} more lines are no PDQ hashes either"
            problems.append(Problem(path, unsaid[0][0], 1, message))
        return frozenset(hashes)

    def _content(self, at: Located, at_most: int) -> bytes | None:
        if (path := self.path(at)) is None:
            return None
        raw = self.given.get(at.text()) or _read(path)
        self.contents[at.text()] = _digest(raw)
        if raw is None:
            at.refuse(f"{path} cannot be read; check its name and its rights")
        elif len(raw) > at_most:
            at.refuse(f"{path} is larger than {at_most} bytes; is it the right file?")
            return None
        return raw


def is_file(path: Path) -> bool:
    """False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path) -> bytes | None:
    """None if it cannot be read or is no file; of one that is too large for any use a little more
    than is allowed."""
    if not is_file(path):  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            return file.read(MAX_LIST_BYTES + 1)
    except OSError:
        return None


def _digest(raw: bytes | None) -> str | None:
    return None if raw is None else hashlib.sha256(raw).hexdigest()
