"""Each event moves the metric that tells of it."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.decoding import children, decoded, photo, rejection, running
from tests.fakes import FakeEncoder
from tests.fakes_images import not_found
from tests.policy_factory import category, policy_bytes
from tests.rig import FIRST, World, metric, until
from tests.unit.test_examine import PLAN, URL, bench_of
from worker import egress, telemetry
from worker.batch_encoder import BatchEncoder
from worker.egress import EgressPolicy, judge_url
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.hosts import Hosts
from worker.types import Pixels


@contextmanager
def grows(name: str, by: float, **labels: str) -> Iterator[None]:
    before = metric(name, **labels)
    yield
    assert metric(name, **labels) == pytest.approx(before + by, rel=0, abs=1e-9)


# ---------------------------------------------------------------- fetches


async def test_download_is_counted_by_how_it_ended(world: World) -> None:
    world.ask("a")
    world.ask("gone", not_found())
    rig = await world.start()
    with (
        grows("fetches_total", 1, outcome="fetched"),
        grows("fetches_total", 1, outcome="http_client_error"),
    ):
        await until(lambda: rig.verdicts().keys() == {"a", "gone"})


async def test_download_of_what_has_not_changed_is_counted_as_such() -> None:
    bench = bench_of(ttl_seconds=1e-9)
    bench.serve(URL, b"red", "one")
    with (
        bench.running(),
        grows("fetches_total", 1, outcome="fetched"),
        grows("fetches_total", 1, outcome="not_modified"),
    ):
        for _ in range(2):
            await bench.examiner.by_url(URL, PLAN)


async def test_refusal_by_a_host_that_is_left_alone_is_counted() -> None:
    hosts = Hosts(slots=1, share=1.0, failures=1)
    with pytest.raises(Unexaminable):
        async with hosts.place(URL) as place:
            with place.attempt():
                raise Unexaminable(ErrorCode.FETCH_TIMEOUT, Stage.FETCH, "slow", retryable=True)
    with grows("fetches_total", 1, outcome="host_unavailable"), pytest.raises(Unexaminable):
        async with hosts.place(URL):
            pass


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://10.0.0.1/", "private"),
        ("http://127.0.0.1/", "loopback"),
        ("http://169.254.169.254/latest", "link_local"),
        ("http://168.63.129.16/", "cloud_metadata"),
        ("http://[::1]/", "not_global_unicast"),
        ("http://93.184.215.14:22/", "port"),
        ("http://images.example:22/", "port"),
    ],
)
def test_refused_address_is_counted_by_what_it_is_for(url: str, reason: str) -> None:
    with grows("addresses_refused_total", 1, reason=reason), pytest.raises(Unexaminable):
        judge_url(url, EgressPolicy())


def test_reasons_of_refusals_are_plain_words() -> None:
    for kind in {*egress._FORBIDDEN_IPV4.values(), *egress._FORBIDDEN_IPV6.values()}:
        with pytest.raises(Unexaminable):
            egress._forbidden(kind, "of a test")
    [family] = telemetry.ADDRESSES_REFUSED.collect()
    assert all(re.fullmatch(r"[a-z0-9_]+", each.labels["reason"]) for each in family.samples)


# ---------------------------------------------------------------- decoders


@pytest.mark.parametrize(
    ("body", "format_", "outcome"),
    [
        (photo(), "png", "decoded"),
        (photo()[:200], "png", "truncated"),
        (b"\xff\xd8\xff" + bytes(50), "jpeg", "undecodable"),
        (b"<!doctype html><p>gone", "other", "not_an_image"),
    ],
    ids=["decoded", "truncated", "broken", "html"],
)
async def test_decode_is_counted_by_format_and_outcome(
    body: bytes, format_: str, outcome: str
) -> None:
    async with running() as pool:
        with (
            grows("decodes_total", 1, format=format_, outcome=outcome),
            grows("stage_wait_seconds_count", 1, stage="decode"),
            grows("stage_duration_seconds_count", 1, stage="decode"),
        ):
            if outcome == "decoded":
                await decoded(pool, body)
            else:
                assert (await rejection(pool, body)).code == outcome


async def test_decoder_pool_tells_who_works_and_who_waits() -> None:
    async with running(processes=1, timeout_seconds=60) as pool:
        await until(lambda: pool.load == (0, 1, 0))
        [child] = children()
        child.suspend()
        first = asyncio.create_task(decoded(pool, photo(1)))
        await until(lambda: pool.load == (1, 1, 0))
        second = asyncio.create_task(decoded(pool, photo(2)))
        await until(lambda: pool.load == (1, 1, 1))
        child.resume()
        await asyncio.gather(first, second)
        await until(lambda: pool.load == (0, 1, 0))


# ---------------------------------------------------------------- the model


class Gated(FakeEncoder):
    """Encodes only while ``go`` says so."""

    def __init__(self, go: Callable[[], bool]) -> None:
        super().__init__()
        self.go = go

    def encode_images(self, pixels: Pixels) -> np.ndarray:
        while not self.go():
            time.sleep(0.001)
        return super().encode_images(pixels)


@asynccontextmanager
async def batches(encoder: FakeEncoder, rows: int) -> AsyncIterator[BatchEncoder]:
    encoding = BatchEncoder(encoder, batch_rows=rows, batch_wait_seconds=0, concurrency=1)
    task = asyncio.create_task(encoding.run())
    try:
        yield encoding
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_batch_tells_how_full_it_is_and_what_it_took() -> None:
    images = [np.zeros((1, 8, 8, 3), np.uint8) for _ in range(3)]
    async with batches(FakeEncoder(), rows=4) as encoding:
        busy = metric("model_busy_seconds_total")
        with (
            grows("batch_fill_ratio_sum", 0.75),
            grows("batch_fill_ratio_count", 1),
            grows("stage_wait_seconds_count", 3, stage="embed"),
            grows("stage_duration_seconds_count", 3, stage="embed"),
        ):
            await asyncio.gather(*map(encoding.encode, images))
        assert metric("model_busy_seconds_total") > busy


async def test_time_with_two_batches_in_the_model_counts_once() -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    open_ = False
    encoding = BatchEncoder(Gated(lambda: open_), batch_rows=1, batch_wait_seconds=0, concurrency=2)
    task = asyncio.create_task(encoding.run())
    began, before = time.perf_counter(), metric("model_busy_seconds_total")
    asking = [asyncio.create_task(encoding.encode(image)) for _ in range(2)]
    await until(lambda: encoding.load.busy == 2)
    open_ = True
    await asyncio.gather(*asking)
    counted = metric("model_busy_seconds_total") - before
    assert 0 < counted <= time.perf_counter() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_encoder_tells_batches_in_flight_and_images_in_none() -> None:
    images = [np.zeros((1, 8, 8, 3), np.uint8) for _ in range(3)]
    open_ = False
    async with batches(Gated(lambda: open_), rows=1) as encoding:
        asking = [asyncio.create_task(encoding.encode(image)) for image in images]
        await until(lambda: encoding.load == (1, 1, 2))
        open_ = True
        await asyncio.gather(*asking)
        await until(lambda: encoding.load == (0, 1, 0))


# ---------------------------------------------------------------- requests


async def test_request_is_timed_in_each_stage(world: World) -> None:
    world.ask("a")
    rig = await world.start()
    with (
        grows("stage_wait_seconds_count", 1, stage="images"),
        grows("stage_wait_seconds_count", 1, stage="embed"),
        grows("stage_wait_seconds_count", 1, stage="answer"),
        grows("stage_duration_seconds_count", 1, stage="fetch"),
        grows("stage_duration_seconds_count", 1, stage="embed"),
        grows("stage_duration_seconds_count", 1, stage="publish"),
        grows("stage_duration_seconds_count", 1, stage="score"),
        grows("stage_duration_seconds_count", 1, stage="answer"),
    ):
        await until(lambda: rig.committed() == 1)


@pytest.mark.parametrize(
    ("age_seconds", "within"), [(0, "1.0"), (7200, "21600.0"), (-7200, "0.05")]
)
async def test_age_of_an_answer_begins_with_its_records_timestamp(
    world: World, age_seconds: float, within: str
) -> None:
    record = world.ask("a")
    stamped = replace(record, timestamp_ms=int((time.time() - age_seconds) * 1000))
    world.broker.logs[FIRST] = [stamped]
    rig = await world.start()
    with (
        grows("end_to_end_seconds_count", 1, lane="live"),
        grows("end_to_end_seconds_bucket", 1, lane="live", le=within),
    ):
        await until(lambda: rig.committed() == 1)


async def test_record_without_a_timestamp_has_no_age(world: World) -> None:
    world.ask("a")
    rig = await world.start()
    with grows("end_to_end_seconds_count", 0, lane="live"):
        await until(lambda: rig.committed() == 1)


async def test_image_tells_how_many_are_in_work_and_how_many_wait(world: World) -> None:
    for name in ("a", "b", "c"):
        world.ask(name, hold=True)
    rig = await world.start(in_flight=2)
    await until(lambda: len(world.fetcher.asked) == 2)
    loads = rig.examiner.loads()
    assert (loads["images"], loads["fetch"]) == ((2, 2, 0), (2, 2, 0))
    for name in ("a", "b", "c"):
        world.release(name)
    await until(lambda: rig.committed() == 3)
    assert rig.examiner.loads()["images"] == (0, 2, 0)


# ---------------------------------------------------------------- verdicts


async def test_verdict_tells_the_probability_of_each_category_and_of_those_on_trial(
    world: World,
) -> None:
    content = policy_bytes(
        category("red"), category("blue", prompts=["blue"], contrast=["red"], mode="shadow"), id="p"
    )
    world.ask("a", b"red")
    rig = await world.start(policies=[content])
    with (
        grows("category_probability_count", 1, policy="p", category="red"),
        grows("category_probability_count", 1, policy="p", category="blue"),
    ):
        verdict = await rig.verdict("a")
        await until(lambda: rig.committed() == 1)
    told = {
        one.id: metric("category_probability_sum", policy="p", category=one.id)
        for one in (*verdict.categories, *verdict.shadow)
    }
    assert set(told) == {"red", "blue"}


async def test_tenant_is_counted_by_name_only_if_a_policy_names_it(world: World) -> None:
    content = policy_bytes(category("red"), tenants={"shop": {"red": {"review": 0.4}}})
    for name, tenant in (("a", "shop"), ("b", "stranger"), ("c", None)):
        world.ask(name, b"blue", tenant=tenant)
    rig = await world.start(policies=[content])
    with (
        grows("tenant_verdicts_total", 1, tenant="shop", action="allow"),
        grows("tenant_verdicts_total", 1, tenant="other", action="allow"),
        grows("tenant_verdicts_total", 1, tenant="none", action="allow"),
        grows("tenant_verdicts_total", 0, tenant="stranger", action="allow"),
    ):
        await until(lambda: rig.committed() == 3)


async def test_policy_tells_when_it_was_loaded(world: World) -> None:
    began = time.time()
    await world.start(policies=[policy_bytes(category("red"), id="loaded")])
    assert metric("policy_loaded_timestamp_seconds", policy="loaded") >= began


# ---------------------------------------------------------------- the process


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
def test_process_tells_its_memory_and_open_files() -> None:
    for name in ("process_resident_memory_bytes", "process_open_fds"):
        value = telemetry.REGISTRY.get_sample_value(name)
        assert value is not None
        assert value > 0
