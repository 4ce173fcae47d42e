"""Writes head files, and knows which images a head was fitted on.

The file is what ``worker.heads`` reads, with the provenance in its metadata, and one tensor more:
``images``, the first 32 bits of the SHA-256 of the images it was fitted on, ascending. A
calibration that is fitted on such images believes a head too much: it has learned them by heart.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worker.authoring.edit import replace_file
from worker.authoring.heads import Logit
from worker.heads import FORMAT
from worker.policy import Policy
from worker.types import digest_of

MOST_IMAGES: Final = 50_000
"""So many are remembered, those with the smallest digests: enough to notice the others' file."""

Provenance = Mapping[str, object]  #: JSON


def head_bytes(
    head: Logit,
    *,
    space: str,
    sha256s: Iterable[str] = (),
    provenance: Provenance | None = None,
) -> bytes:
    """The content of a head file, for embeddings of the ``ModelInfo.space``. ``sha256s`` are those
    of the images it was fitted on."""
    raw: bytes = save(
        {
            "vector": head.vector,
            "bias": np.array([head.bias], dtype=np.float32),
            "images": _shortened(sha256s)[:MOST_IMAGES],
        },
        metadata={
            "format": FORMAT,
            "space": space,
            "provenance": json.dumps(provenance or {}),
        },
    )
    # safetensors shuffles its header; sorted, equal heads are equal files
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[start:]


def placeholder() -> bytes:
    """What stands in for a head that is about to be fitted, while its policy is read."""
    return head_bytes(Logit(np.ones(1, dtype=np.float32), 0.0), space=digest_of(None))


@contextmanager
def written(path: Path, content: bytes, provenance: Provenance) -> Iterator[None]:
    """Writes a head file and, beside it, its provenance for people, as JSON. Where the block fails,
    both are again what they were."""
    beside = path.with_suffix(".json")
    before = {file: file.read_bytes() if file.exists() else None for file in (path, beside)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        replace_file(path, content)
        replace_file(beside, f"{json.dumps(provenance, indent=2)}\n".encode())
        yield
    except BaseException:
        for file, old in before.items():
            if old is None:
                file.unlink(missing_ok=True)
            else:
                replace_file(file, old)
        raise


def known_by_heart(policy: Policy, folder: Path, sha256s: Collection[str]) -> Mapping[str, str]:
    """By category, why no calibration of it may be fitted on these images: its head, whose file is
    in the policy's ``folder``, was fitted on some of them."""
    shortened = _shortened(sha256s)
    known = {}
    for category in policy.categories:
        if category.head and (count := _fitted_on(folder / category.head.file, shortened)):
            known[category.id] = (
                f"its head was fitted on {count:,} of these images, and is surer of them than it "
                f"will be of others; `imagewarden policy fit-head` calibrates it on images that "
                f"were held out"
            )
    return known


def _fitted_on(path: Path, shortened: NDArray[np.uint32]) -> int:
    """How many of these images, as far as the file remembers; one not by us remembers none."""
    try:
        remembered = load(path.read_bytes()).get("images")
    except (OSError, SafetensorError):  # whoever reads the policy says so better
        return 0
    return 0 if remembered is None else int(np.isin(shortened, remembered).sum())


def _shortened(sha256s: Iterable[str]) -> NDArray[np.uint32]:
    return np.unique(np.array([int(one[:8], 16) for one in sha256s], dtype=np.uint32))
