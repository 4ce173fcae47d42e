"""The policies that decide now: loaded at start, and again whenever a file changes.

An edit takes effect between two images, whole or not at all: what cannot be loaded is refused in
the log and in a metric, and the last good version goes on deciding. All that takes long is done on
threads, beside the verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from worker import telemetry
from worker.background import in_background
from worker.compile import compile_policy, texts_of
from worker.compiled import CompiledPolicy
from worker.errors import Misconfigured
from worker.perceptual import check_lists
from worker.policy import Policy, check_model
from worker.policy_files import PolicyFiles
from worker.policy_yaml import InvalidPolicy, parse_policy, read_policy
from worker.seams import Encoder

_log = structlog.get_logger(__name__)

_TEXTS_PER_CALL: Final = 16  # short calls, so that a batch of images never waits long for the model
_NAMED: Final = 10  # of the categories that are not calibrated, in a line of the log


@dataclass(slots=True)
class _File:
    path: Path
    raw: bytes | None = None  #: as read last, good or refused; None if it could not be read
    beside: PolicyFiles = field(init=False)  #: the files that it names, as read with it
    policy_id: str | None = None  #: None until it was loaded

    def __post_init__(self) -> None:
        self.beside = PolicyFiles(self.path.parent)

    def read(self) -> bool:
        """Whether it, or a file that it names, is another one than last time. Raises
        ``InvalidPolicy``."""
        seen, self.raw = self.raw, None
        self.raw = read_policy(self.path)
        return self.raw != seen or self.beside.changed()

    def parse(self) -> Policy:
        assert self.raw is not None
        self.beside = PolicyFiles(self.path.parent)
        policy = parse_policy(self.raw, str(self.path), files=self.beside)
        _ = policy.digest  # takes a while, and is kept
        return policy


class PolicyStore:
    """One policy for each file; none before ``load_all``.

    Files, those that a policy names too, are compared by content: they are small, and so neither a
    symlink that is swapped (as Kubernetes does) nor two edits within the clock's resolution go
    unseen. Text embeddings are kept by string, so an edit costs only what is new in it; beyond
    ``kept_texts`` of them, those that no policy uses are dropped. ``hashed``: images get perceptual
    hashes, without which a policy that lists any is refused.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        encoder: Encoder,
        *,
        interval_seconds: float = 0.5,
        kept_texts: int = 10_000,
        hashed: bool = True,
    ) -> None:
        self._files = [_File(path) for path in paths]
        self._encoder = encoder
        self._interval_seconds = interval_seconds
        self._kept_texts = kept_texts
        self._hashed = hashed
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        self._current: dict[str, CompiledPolicy] = {}

    def current(self, policy_id: str | None = None) -> CompiledPolicy:
        """The policy of that id or, for None, the first file's. Raises ``KeyError`` for an unknown
        id. Hold on to the answer for as long as one image takes, and no longer."""
        if policy_id is None:
            return next(iter(self._current.values()))
        return self._current[policy_id]

    def all_current(self) -> Sequence[CompiledPolicy]:
        """Of every file; from any thread."""
        return list(self._current.values())

    async def load_all(self) -> None:
        """Load every file, or raise ``InvalidPolicy`` or another ``Misconfigured``."""
        if not self._files:
            raise Misconfigured("no policy file is given; name at least one")
        for file in self._files:
            await asyncio.to_thread(file.read)
            await self._load(file)
            for outcome in ("applied", "refused"):  # at 0, so that the first one is an increase
                telemetry.POLICY_RELOADS.labels(file.policy_id, outcome)

    async def watch(self) -> None:
        """Apply edits until cancelled. What the encoder raises is raised on."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            for file in self._files:
                await self._refresh(file)

    async def _refresh(self, file: _File) -> None:
        was_there = file.raw is not None
        try:
            if not await asyncio.to_thread(file.read):
                return
        except InvalidPolicy as error:
            if was_there:
                self._refuse(file, error)
            return
        try:
            await self._load(file)
        except Misconfigured as error:
            self._refuse(file, error)
        else:
            telemetry.POLICY_RELOADS.labels(file.policy_id, "applied").inc()
            await in_background(self._forget)

    async def _load(self, file: _File) -> None:
        """All that can fail comes first; the swap is one assignment."""
        info = self._encoder.info
        policy = await in_background(file.parse)
        self._check_id(file, policy)
        check_model(policy, info)
        check_lists(policy, wanted=self._hashed)
        texts = await in_background(texts_of, policy)
        await self._embed([text for text in texts if text not in self._embeddings])
        compiled = await in_background(compile_policy, policy, info, self._embeddings)
        replaced = self._current.get(policy.id)
        self._current[policy.id] = compiled
        file.policy_id = policy.id
        if replaced:
            telemetry.POLICY_INFO.remove(*_labels(replaced.policy))
        telemetry.POLICY_INFO.labels(*_labels(policy)).set(1)
        telemetry.POLICY_STALE.labels(policy.id).set(0)
        telemetry.POLICY_LOADED_AT.labels(policy.id).set_to_current_time()
        telemetry.TENANTS.know(self._tenants())
        _log.info(
            "policy_loaded",
            path=str(file.path),
            policy=policy.id,
            version=policy.version,
            digest=policy.digest,
            uncalibrated=len(compiled.uncalibrated),
            among_them=compiled.uncalibrated[:_NAMED],
        )

    def _tenants(self) -> set[str]:
        return {each.tenant for one in self.all_current() for each in one.policy.overrides}

    def _check_id(self, file: _File, policy: Policy) -> None:
        if file.policy_id is None and policy.id in self._current:
            raise Misconfigured(
                f"{file.path}: another file has the id {policy.id!r} too; change one"
            )
        if file.policy_id not in (None, policy.id):
            raise Misconfigured(
                f"{file.path}: the id was {file.policy_id!r} and is now {policy.id!r}, while "
                f"requests may name the old one; restore it, or restart to load the new one"
            )

    async def _embed(self, texts: Sequence[str]) -> None:
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = texts[start : start + _TEXTS_PER_CALL]
            rows = await asyncio.to_thread(self._encoder.encode_texts, chunk)
            self._embeddings.update(zip(chunk, rows, strict=True))

    def _forget(self) -> None:
        if len(self._embeddings) > self._kept_texts:
            used = {text for one in self._current.values() for text in texts_of(one.policy)}
            unused = [text for text in self._embeddings if text not in used]
            for text in unused[: len(self._embeddings) - self._kept_texts]:  # the oldest
                del self._embeddings[text]

    def _refuse(self, file: _File, error: Misconfigured) -> None:
        assert file.policy_id is not None, "a file is watched only once it was loaded"
        telemetry.POLICY_RELOADS.labels(file.policy_id, "refused").inc()
        telemetry.POLICY_STALE.labels(file.policy_id).set(1)
        _log.error(
            "policy_refused",
            path=str(file.path),
            problems=str(error).splitlines(),
            deciding=f"version {self._current[file.policy_id].policy.version}, as before",
        )


def _labels(policy: Policy) -> tuple[str, str, str]:
    return policy.id, str(policy.version), policy.digest
