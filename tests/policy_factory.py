"""Policies for tests, written as their authors write them: as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from worker.compile import compile_policy, texts_of
from worker.policy import Policy
from worker.policy_yaml import parse_policy
from worker.score import CompiledPolicy
from worker.seams import Encoder


def category(id: str = "colour.red", **keys: Any) -> dict[str, Any]:
    return {"id": id, "prompts": ["red"], "contrast": ["blue"], "review": 0.5, **keys}


def policy_bytes(*categories: Mapping[str, Any], **keys: Any) -> bytes:
    """A file with these categories and keys, in JSON, which is YAML too."""
    content = {"version": 1, "id": "test", "model": "fake", "categories": list(categories), **keys}
    return json.dumps(content).encode()


def policy_of(*categories: Mapping[str, Any], **keys: Any) -> Policy:
    return parse_policy(policy_bytes(*categories, **keys), "test.yaml")


def compiled_of(policy: Policy, encoder: Encoder) -> CompiledPolicy:
    texts = texts_of(policy)
    embeddings = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    return compile_policy(policy, encoder.info, embeddings)
