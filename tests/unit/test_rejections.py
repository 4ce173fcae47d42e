"""A worker that rejects what it reads stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig import World, until
from worker.errors import Halted
from worker.rejections import Rejections


async def test_worker_stops_before_it_empties_the_topic_into_the_dead_letters(
    world: World,
) -> None:
    for number in range(20):
        world.send(b"%d" % number, b"not JSON")
    rig = await world.start(max_rejected_share=0.5)
    with pytest.raises(ExceptionGroup) as ended:
        await rig.running
    assert ended.group_contains(Halted, match="MAX_REJECTED_SHARE")
    assert len(rig.dead_letters()) == 2  # half of a window of four
    await rig.source.close()
    assert (rig.committed() or 0) <= 2


async def test_a_bad_record_now_and_then_stops_nothing(world: World) -> None:
    for number in range(10):
        world.send(b"k", b"not JSON")
        world.ask(f"a{number}", key=b"k")
        world.ask(f"b{number}", key=b"k")
    rig = await world.start(max_rejected_share=0.5)
    await until(lambda: rig.committed() == 30)
    assert len(rig.dead_letters()) == 10


@given(st.lists(st.booleans(), max_size=100), st.integers(1, 20), st.floats(0.05, 1))
def test_no_window_ever_has_more_than_its_share_put_away(
    records: list[bool], window: int, share: float
) -> None:
    rejections = Rejections(share=share, window=window)
    seen: list[bool] = []
    try:
        for rejected in records:
            rejections.count(rejected=rejected)
            seen.append(rejected)
    except Halted:
        assert sum([*seen, True][-window:]) > int(share * window)
    if share < 1:
        assert all(
            sum(seen[start : start + window]) <= int(share * window) for start in range(len(seen))
        )
