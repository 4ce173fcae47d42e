from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.fakes import FakeEncoder
from tests.policy_factory import category, head_bytes, policy_bytes
from worker.heads import FORMAT, parse_head
from worker.policy import Policy
from worker.policy_yaml import InvalidPolicy, parse_policy

INFO = FakeEncoder(3).info
VECTOR = [0.25, -1.5, 3.0]
METADATA = {"format": FORMAT, "space": INFO.space}


def file_of(tensors: dict[str, Any], metadata: dict[str, str] | None = METADATA) -> bytes:
    content: bytes = save(tensors, metadata=metadata)
    return content


GOOD = {"vector": np.array(VECTOR, np.float32), "bias": np.array([0.5], np.float32)}


def test_a_head_is_read_as_it_was_written() -> None:
    raw = head_bytes(INFO, VECTOR, 0.5, provenance="{}")
    head = parse_head(raw, "heads/a.safetensors", 0.7)

    assert (head.file, head.weight) == ("heads/a.safetensors", 0.7)
    assert (head.vector, head.bias) == (tuple(VECTOR), 0.5)
    assert head.space == INFO.space
    assert head.digest.startswith("sha256:")


def test_the_digest_is_of_the_whole_file() -> None:
    one, other = (parse_head(head_bytes(INFO, VECTOR, 0.5, fitted=on), "h") for on in "ab")
    assert one.vector == other.vector
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "is no safetensors file"),
        (b"version: 1\n" * 9, "is no safetensors file"),
        (file_of(GOOD)[:-3], "is no safetensors file"),
        (file_of(GOOD, None), "its metadata has 'nothing' as `format`, not 'imagewarden-head-1'"),
        (file_of(GOOD, {"format": "pt"}), "its metadata has 'pt' as `format`"),
        (file_of(GOOD, {"format": FORMAT}), "does not say in its metadata which embeddings"),
        (file_of({"bias": GOOD["bias"]}), "holds no `vector`"),
        (file_of({"vector": GOOD["vector"]}), "holds no `bias`"),
        (file_of({**GOOD, "bias": GOOD["vector"]}), "has 3 numbers as `bias`, not one"),
        (file_of({**GOOD, "vector": np.zeros(3, np.float32)}), "a `vector` of zeros"),
        (file_of({**GOOD, "vector": np.zeros(0, np.float32)}), "a `vector` of float32[0]"),
        (file_of({**GOOD, "vector": np.ones((1, 3), np.float32)}), "a `vector` of float32[1, 3]"),
        (file_of({**GOOD, "vector": np.ones(3, np.float64)}), "a `vector` of float64[3]"),
        (file_of({**GOOD, "vector": np.array([1, np.nan], np.float32)}), "that is not finite"),
        (file_of({**GOOD, "bias": np.array([np.inf], np.float32)}), "that is not finite"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_no_head_is_refused_with_what_it_is(raw: bytes, problem: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_head(raw, "h")
    assert problem in str(refused.value)


# ---------------------------------------------------------------- in a policy


def policy_in(folder: Path, **keys: Any) -> Policy:
    written = {key: value for key, value in category(**keys).items() if value is not None}
    return parse_policy(policy_bytes(written), str(folder / "policy.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "red.safetensors").write_bytes(head_bytes(INFO, VECTOR))
    return tmp_path


def test_a_head_may_stand_in_the_place_of_prompts(folder: Path) -> None:
    policy = policy_in(folder, prompts=None, contrast=None, head="heads/red.safetensors")
    [only] = policy.categories
    assert only.head is not None
    assert (only.head.weight, only.head.vector) == (1.0, tuple(VECTOR))
    assert (only.prompts, only.contrast) == ((), ())


def test_a_head_beside_prompts_counts_what_is_written(folder: Path) -> None:
    policy = policy_in(folder, head={"file": "heads/red.safetensors", "weight": 0.7})
    [only] = policy.categories
    assert only.head is not None
    assert only.head.weight == 0.7
    assert only.prompts


def test_contrasts_of_the_policy_are_none_of_a_head_alone(folder: Path) -> None:
    content = {"id": "a", "head": "heads/red.safetensors", "review": 0.5}
    raw = policy_bytes(content, category("b"), contrast=["food"])
    alone, worded = parse_policy(raw, str(folder / "policy.yaml")).categories
    assert alone.contrast == ()
    assert "food" in [prompt.text for prompt in worded.contrast]


def test_another_head_or_weight_is_another_policy_and_the_same_head_elsewhere_is_not(
    folder: Path,
) -> None:
    heads = folder / "heads"
    (heads / "same.safetensors").write_bytes((heads / "red.safetensors").read_bytes())
    (heads / "other.safetensors").write_bytes(head_bytes(INFO, VECTOR, 0.1))

    def digest(name: str, weight: float = 0.7) -> str:
        file = f"heads/{name}.safetensors"
        return policy_in(folder, head={"file": file, "weight": weight}).digest

    assert digest("red") == digest("same")
    assert digest("red") != digest("other")
    assert digest("red") != digest("red", 0.6)


def test_a_file_that_is_no_head_is_refused_where_it_is_named(folder: Path) -> None:
    (folder / "heads" / "red.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidPolicy, match=r"policy.yaml:1:\d+: heads/red.safetensors is no saf"):
        policy_in(folder, prompts=None, contrast=None, head="heads/red.safetensors")


def test_a_file_far_larger_than_any_head_is_refused_unread(folder: Path) -> None:
    with (folder / "heads" / "red.safetensors").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(InvalidPolicy, match=r"is larger than 1048576 bytes; is it the right file"):
        policy_in(folder, prompts=None, contrast=None, head="heads/red.safetensors")
