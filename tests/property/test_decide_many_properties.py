"""The past is decided on by the same arithmetic as the present."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeEncoder
from tests.policy_factory import category, compiled_of, fitted, policy_of, with_head
from worker.compiled import CompiledPolicy
from worker.decide_many import ACTIONS, NOBODY, decide_many
from worker.policy import Calibration, Head
from worker.score import Decided, decide
from worker.types import Float16Rows

untimed = settings(deadline=None)

TENANTS = (None, "strict", "lenient", "unheard of")
ENCODER = FakeEncoder(32)


def policy(mode: str = "enforce") -> CompiledPolicy:
    """Of every kind of category, with thresholds amid what random images reach."""
    rng = np.random.default_rng(4)
    head = Head("h", "sha256:h", ENCODER.info.space, tuple(rng.standard_normal(32)), 0.1, 0.6)
    written = policy_of(
        category("plain", mode=mode, review=0.5, block=0.7, block_uncalibrated=True),
        category("only-blocks", mode=mode, prompts=["a"], block=0.6),
        category("trial", mode="shadow", prompts=["b"], review=0.1, block=0.2),
        category("off", mode="off"),
        category("dampened", mode=mode, prompts=["c"], exceptions=["d"], frames={"at_least": 2}),
        category("blended", mode=mode, prompts=["e"], review=0.4, block=0.6),
        category("isotonic", mode=mode, prompts=["f"], frames={"at_least": 3}, block=0.8),
        contrast=["g", "h"],
        tenants={
            "strict": {"plain": {"review": 0.1, "block": 0.2}, "blended": {"block": 0.41}},
            "lenient": {"plain": {"review": 0.9, "block": 1.0}},
        },
    )
    points = ((-20.0, 0.0), (-1.0, 0.5), (1.0, 0.5), (20.0, 1.0))  # ties at a threshold
    calibrations = {
        "blended": Calibration("", scale=0.5, bias=0.1),
        "isotonic": Calibration("", "isotonic", points=points),
    }
    written = fitted(with_head(written, "blended", head), ENCODER.info, calibrations)
    return compiled_of(written, ENCODER)


POLICIES = {"enforced": policy(), "all on trial": policy("shadow")}


@st.composite
def images(draw: st.DrawFn) -> list[tuple[Float16Rows, list[int]]]:
    """Rows and their frames."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for size in sizes:
        rows = rng.standard_normal((size, 32))
        rows[draw(st.integers(0, size - 1))] = rows[0]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        frames = draw(st.lists(st.integers(0, 40), min_size=size, max_size=size))
        found.append((rows.astype(np.float16), frames))
    return found


@pytest.mark.parametrize("compiled", POLICIES.values(), ids=POLICIES)
@untimed
@given(data=st.data())
def test_many_are_decided_on_as_each_of_them_is(
    compiled: CompiledPolicy, data: st.DataObject
) -> None:
    many = data.draw(images())
    tenants = data.draw(st.lists(st.sampled_from(TENANTS), min_size=len(many), max_size=len(many)))
    starts = np.cumsum([0, *(len(rows) for rows, _ in many[:-1])])

    together = decide_many(
        compiled,
        np.concatenate([rows for rows, _ in many]),
        starts,
        tenants,
        np.concatenate([frames for _, frames in many]),
    )

    for image, ((rows, frames), tenant) in enumerate(zip(many, tenants, strict=True)):
        alone = decide(compiled, rows, tenant, frames)
        assert ACTIONS[together.decisions[image]] is alone.decision
        place = int(together.decided_by[image])
        decided_by = None if place == NOBODY else compiled.categories[place].id
        assert decided_by == alone.decided_by
        found = zip(together.actions[image], together.probabilities[image], strict=True)
        assert [(ACTIONS[action], probability) for action, probability in found] == (
            by_category(compiled, alone)
        )


def by_category(compiled: CompiledPolicy, decided: Decided) -> list[tuple[str, float]]:
    by_id = {one.id: one for one in (*decided.categories, *decided.shadow)}
    scores = [by_id[category.id] for category in compiled.categories]
    return [(one.action, one.probability) for one in scores]


def test_images_of_a_row_each_need_no_frames() -> None:
    compiled = POLICIES["enforced"]
    rows = np.random.default_rng(2).standard_normal((700, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    together = decide_many(compiled, rows, np.arange(700), [None] * 700)
    alone = [decide(compiled, row[None], None).decision for row in rows]
    assert [ACTIONS[code] for code in together.decisions] == alone
    assert set(alone) == set(ACTIONS), "a test of one outcome would be none"


def test_an_image_without_rows_is_never_decided_on() -> None:
    rows = np.zeros((2, 32), dtype=np.float16)
    for starts in ([0, 0], [0, 2], [0, 1, 1]):
        with pytest.raises(ValueError, match="was not examined"):
            decide_many(POLICIES["enforced"], rows, np.array(starts), [None] * len(starts))


def test_no_images_are_no_decisions() -> None:
    none = np.zeros((0, 32), dtype=np.float16)
    found = decide_many(POLICIES["enforced"], none, np.array([], dtype=np.intp), [])
    assert found.decisions.shape == (0,)
    assert found.actions.shape == found.probabilities.shape == (0, 6)
