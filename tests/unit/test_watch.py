"""What is read off the running parts at a scrape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import FakeEncoder
from tests.policy_factory import category, policy_bytes, policy_of
from tests.rig import World, metric, until
from worker import telemetry
from worker.policy import margin_digest
from worker.reload import PolicyStore
from worker.types import DeviceMemory, Load
from worker.watch import watching_device, watching_lane, watching_policies, watching_stages

DAY = 1_767_225_600  # 2026-01-01


def test_stage_tells_how_full_it_is() -> None:
    with watching_stages(lambda: {"decode": Load(busy=3, places=4, waiting=5)}):
        told = [
            metric(f"stage_{name}", stage="decode")
            for name in ("busy_places", "places", "waiting_images")
        ]
    assert told == [3, 4, 5]


async def test_lane_tells_its_records_and_the_age_of_the_oldest(world: World) -> None:
    world.ask("held", hold=True)
    rig = await world.start(in_flight=4)
    with watching_lane("live", rig.pipeline):
        await until(lambda: metric("stage_busy_places", stage="requests_live") == 1)
        assert metric("stage_places", stage="requests_live") == 4
        first = metric("oldest_in_flight_seconds", lane="live")
        world.ask("later")
        await rig.verdict("later")
        assert metric("oldest_in_flight_seconds", lane="live") > first > 0
        world.release("held")
        await until(lambda: metric("oldest_in_flight_seconds", lane="live") == 0)
        assert metric("stage_busy_places", stage="requests_live") == 0


async def test_poll_age_begins_anew_with_each_poll(world: World) -> None:
    rig = await world.start()
    rig.pipeline.polled_at -= 1000  # as if it had been stuck
    with watching_lane("live", rig.pipeline):
        await rig.polled_on()
        assert metric("poll_age_seconds", lane="live") < 1000


async def test_commit_delay_begins_anew_with_each_commit(world: World) -> None:
    rig = await world.start()
    rig.pipeline.committed_at -= 1000
    world.ask("a")
    await until(lambda: rig.committed() == 1)
    with watching_lane("live", rig.pipeline):
        await until(lambda: metric("commit_delay_seconds", lane="live") < 1000)


async def test_commit_delay_grows_while_transactions_are_given_up(world: World) -> None:
    rig = await world.start(exactly_once=True)
    rig.transactions.aborts = 10**6
    world.ask("a")
    await until(lambda: rig.transactions.aborts < 10**6)
    before = rig.pipeline.committed_at
    left = rig.transactions.aborts
    await until(lambda: rig.transactions.aborts < left)
    assert rig.pipeline.committed_at == before
    rig.transactions.aborts = 0
    await until(lambda: rig.pipeline.committed_at > before)


async def test_what_a_lane_told_is_gone_with_it(world: World) -> None:
    rig = await world.start()
    with watching_lane("live", rig.pipeline):
        pass
    for gauge in (telemetry.OLDEST_IN_FLIGHT, telemetry.POLL_AGE, telemetry.COMMIT_DELAY):
        assert gauge.collect()[0].samples == []


# ---------------------------------------------------------------- policies


def calibrated(date: str | None, *, stale: bool = False) -> bytes:
    """A policy with a calibration of that day, for other prompts than it has if ``stale``, and a
    category that has none."""
    encoder = FakeEncoder()
    policy = policy_of(category("red"), category("blue", prompts=["blue"], contrast=["red"]))
    digest = (
        f"sha256:{0:064}" if stale else margin_digest(policy, policy.categories[0], encoder.info)
    )
    dated = {} if date is None else {"date": date}
    fitted = {"method": "platt", "for": digest, "scale": 1.0, "bias": 0.0, **dated}
    return policy_bytes(
        category("red", calibration=fitted),
        category("blue", prompts=["blue"], contrast=["red"]),
        id="dated",
    )


@pytest.mark.parametrize(
    ("content", "day", "uncalibrated"),
    [
        (calibrated("2026-01-01"), DAY, 1),
        (calibrated(None), None, 1),
        (calibrated("2026-01-01", stale=True), None, 2),
    ],
    ids=["dated", "undated", "stale"],
)
async def test_calibration_that_is_used_tells_its_day(
    tmp_path: Path, content: bytes, day: float | None, uncalibrated: int
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    policies = PolicyStore([path], FakeEncoder())
    with watching_policies(policies):
        await policies.load_all()
        labels = {"policy": "dated", "category": "red"}
        told = telemetry.REGISTRY.get_sample_value(
            "imagewarden_calibration_timestamp_seconds", labels
        )
        assert told == day
        assert metric("uncalibrated_categories", policy="dated") == uncalibrated


# ---------------------------------------------------------------- the device


def test_device_with_memory_of_its_own_tells_it() -> None:
    encoder = FakeEncoder()
    encoder.memory = DeviceMemory("cuda:0", allocated=1, used=2, size=3)
    with watching_device(encoder):
        told = [
            metric(f"device_memory_{name}_bytes", device="cuda:0")
            for name in ("allocated", "used", "size")
        ]
    assert told == [1, 2, 3]


def test_device_without_tells_nothing() -> None:
    with watching_device(FakeEncoder()):
        assert telemetry.DEVICE_MEMORY_SIZE.collect()[0].samples == []
