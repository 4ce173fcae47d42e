"""Policies for tests, written as their authors write them: as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from worker.compile import compile_policy, texts_of
from worker.compiled import CompiledPolicy
from worker.heads import FORMAT
from worker.policy import Calibration, Category, Head, Policy, margin_digest
from worker.policy_yaml import parse_policy
from worker.seams import Encoder
from worker.types import ModelInfo


def category(id: str = "colour.red", **keys: Any) -> dict[str, Any]:
    return {"id": id, "prompts": ["red"], "contrast": ["blue"], "review": 0.5, **keys}


def policy_bytes(*categories: Mapping[str, Any], **keys: Any) -> bytes:
    """A file with these categories and keys, in JSON, which is YAML too."""
    content = {"version": 1, "id": "test", "model": "fake", "categories": list(categories), **keys}
    return json.dumps(content).encode()


def policy_of(*categories: Mapping[str, Any], folder: Path = Path(), **keys: Any) -> Policy:
    """``folder`` is where the files lie that it names."""
    return parse_policy(policy_bytes(*categories, **keys), str(folder / "test.yaml"))


def head_bytes(
    info: ModelInfo, vector: Sequence[float], bias: float = 0.0, **metadata: str
) -> bytes:
    """A head file for the embeddings of a model."""
    tensors = {"vector": np.array(vector, np.float32), "bias": np.array([bias], np.float32)}
    content: bytes = save(tensors, metadata={"format": FORMAT, "space": info.space, **metadata})
    return content


def compiled_of(policy: Policy, encoder: Encoder) -> CompiledPolicy:
    texts = texts_of(policy)
    embeddings = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    return compile_policy(policy, encoder.info, embeddings)


def with_head(policy: Policy, id: str, head: Head, *, alone: bool = False) -> Policy:
    """The policy with a head in a category, beside its prompts or, if ``alone``, in their place."""

    def add(category: Category) -> Category:
        contrast = () if alone and not category.exceptions else category.contrast
        prompts = () if alone else category.prompts
        return replace(category, head=head, prompts=prompts, contrast=contrast)

    return _with(policy, {id: add})


def fitted(policy: Policy, info: ModelInfo, calibrations: Mapping[str, Calibration]) -> Policy:
    """The policy with these calibrations, by category, as if fitted to the margins it has."""

    def calibrate(category: Category) -> Category:
        for_ = margin_digest(policy, category, info)
        return replace(category, calibration=replace(calibrations[category.id], fitted_for=for_))

    return _with(policy, dict.fromkeys(calibrations, calibrate))


def _with(policy: Policy, changes: Mapping[str, Callable[[Category], Category]]) -> Policy:
    return replace(
        policy,
        categories=tuple(
            changes[category.id](category) if category.id in changes else category
            for category in policy.categories
        ),
    )
