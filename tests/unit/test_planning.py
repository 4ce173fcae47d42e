"""What a load needs, by hand and in general."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from worker.bench.results import Figure, Report, Result, write_report
from worker.cli import cli
from worker.embedding_format import encode_embedding
from worker.errors import Misconfigured
from worker.planning import (
    PARTITION_BYTES_PER_SECOND,
    REDIS_URL_BYTES,
    Load,
    Rates,
    embedding_bytes,
    plan,
    rates_of,
)
from worker.types import Embedding, EmbeddingKey, ImageFacts

GPU = Rates("ViT-L-14", 100, "GPU", core_ms=10, process_per_second=250, cached_per_second=500)
CORES = replace(GPU, model="pocket", model_runs_on="core")
#: 100 images/s on average, 200 at the peak
LOAD = Load(8_640_000, peak_factor=2, headroom=0.5, retention_days=10, replicas=2, dimension=768)
DIGEST = "sha256:" + "ab" * 32


def needed(load: Load, rates: Rates = GPU) -> dict[str, float]:
    return {line.what: line.needed for line in plan(load, rates)}


def test_the_peak_is_the_mean_times_its_factor() -> None:
    assert needed(LOAD)["peak"] == 200


def test_gpus_are_the_peak_over_what_one_does_with_headroom() -> None:
    assert needed(LOAD)["GPUs"] == 4  # 200 / 100 / 0.5


def test_a_model_on_the_cpu_needs_cores_of_its_own() -> None:
    assert needed(LOAD, CORES)["cores for the model"] == 4


def test_cores_outside_the_model_are_the_peak_times_their_milliseconds() -> None:
    assert needed(LOAD)["cores outside the model"] == 4  # 200 × 10 ms / 0.5


def test_each_gpu_has_a_worker_process_of_its_own() -> None:
    slow = replace(GPU, model_per_second=50)
    assert needed(LOAD)["worker processes"] == 4
    assert needed(LOAD, slow)["worker processes"] == needed(LOAD, slow)["GPUs"] == 8


def test_without_gpus_worker_processes_follow_from_what_one_does() -> None:
    assert needed(LOAD, CORES)["worker processes"] == 2  # 200 / 250 / 0.5


def test_partitions_let_the_processes_double() -> None:
    assert needed(LOAD)["partitions"] == 8


def test_partitions_follow_the_bytes_where_there_are_many() -> None:
    load = replace(LOAD, verdict_bytes=PARTITION_BYTES_PER_SECOND)
    assert needed(load)["partitions"] >= 200


def test_what_is_cached_is_neither_downloaded_nor_embedded() -> None:
    load = replace(LOAD, cached=0.5)
    assert needed(load)["GPUs"] == 2
    assert needed(load)["network in"] == 5.0  # 100/s × 50 KB
    assert needed(load)["cores outside the model"] == 3  # (100 × 10 ms + 100 × 2 ms) / 0.5


def test_what_is_a_duplicate_is_downloaded_and_not_embedded() -> None:
    load = replace(LOAD, duplicates=0.5)
    assert needed(load)["GPUs"] == 2
    assert needed(load)["network in"] == 10.0


def test_redis_holds_the_embeddings_of_its_days_and_the_urls_of_one() -> None:
    load = replace(LOAD, redis_days=2)
    of_embeddings = 8_640_000 * 2 * (2_550 + 262)
    assert needed(load)["Redis memory"] == pytest.approx(
        (of_embeddings + 8_640_000 * REDIS_URL_BYTES) / 1e9
    )


def test_topics_hold_each_record_for_the_retention_in_each_replica() -> None:
    load = replace(LOAD, verdict_bytes=910)
    found = needed(load)
    assert found["topic verdicts"] == pytest.approx(8_640_000 * 1_000 * 10 * 2 / 1e9)
    topics = (amount for what, amount in found.items() if what.startswith("topic "))
    assert found["topics in all"] == pytest.approx(sum(topics))


def test_shares_over_all_images_are_refused() -> None:
    with pytest.raises(Misconfigured, match="at most 1"):
        replace(LOAD, cached=0.7, duplicates=0.4)


@pytest.mark.parametrize("dimension", [384, 512, 768, 1024])
def test_an_embeddings_bytes_are_those_of_its_format(dimension: int) -> None:
    rows = np.zeros((1, dimension), np.float16)
    facts = ImageFacts("ab" * 32, "cd" * 32, "image/jpeg", 1024, 768, 51_200, 1, (0,), False)
    encoded = encode_embedding(Embedding(EmbeddingKey("ab" * 32, DIGEST, DIGEST), rows, facts))
    assert abs(len(encoded) - embedding_bytes(dimension)) <= 4  # how many digits its sizes have


shares = st.floats(0, 0.5)
loads = st.builds(
    Load,
    images_per_day=st.floats(0, 1e10),
    peak_factor=st.floats(1, 20),
    cached=shares,
    duplicates=shares,
    image_kilobytes=st.floats(0, 1e5),
    headroom=st.floats(0.01, 1),
    retention_days=st.floats(0, 1000),
    replicas=st.integers(1, 5),
    redis_days=st.floats(0, 400),
)


@given(loads, st.floats(1, 100), st.sampled_from([GPU, CORES]))
def test_more_images_never_need_less(load: Load, times: float, rates: Rates) -> None:
    fewer = needed(load, rates)
    more = needed(replace(load, images_per_day=load.images_per_day * times), rates)
    assert all(more[what] >= fewer[what] for what in fewer)


@given(loads, st.sampled_from([GPU, CORES]))
def test_each_worker_process_has_a_partition(load: Load, rates: Rates) -> None:
    found = needed(load, rates)
    assert found["partitions"] >= found["worker processes"] >= 1


# ------------------------------------------------------------------------------------ reports


def figures(**medians: float) -> dict[str, Figure]:
    return {name: Figure("", (median,)) for name, median in medians.items()}


def report(device: str = "cpu") -> Report:
    no_op = {
        **figures(**{"images/s": 250}),
        **figures(**{"core-ms/image, worker": 2, "core-ms/image, decoders": 3}),
        **figures(**{"core-ms/image, client": 9}),
    }
    return Report(
        "2026-11-21T12:00:00Z",
        {"processors": "2 × AMD EPYC"},
        (
            Result("model", {"model": "pocket", "device": device}, figures(**{"images/s": 240.0})),
            Result("no-op", {}, no_op),
            Result("cached", {}, figures(**{"verdicts/s": 2_500})),
            Result("end-to-end", {}, {}, failed="no broker"),
        ),
    )


def test_a_cpus_rate_is_shared_out_to_its_cores() -> None:
    found = rates_of(report(), "pocket")
    assert (found["model_per_second"], found["model_runs_on"]) == (120, "core")


def test_a_gpus_rate_is_its_own() -> None:
    found = rates_of(report("cuda:0"), "pocket")
    assert (found["model_per_second"], found["model_runs_on"]) == (240, "GPU")


def test_cores_outside_the_model_are_the_workers_and_the_decoders() -> None:
    assert rates_of(report(), "pocket")["core_ms"] == 5


def test_another_models_rate_is_not_taken() -> None:
    assert "model_per_second" not in rates_of(report(), "ViT-L-14")


# ------------------------------------------------------------------------------- command line


def test_the_command_prints_a_json_object_for_each_line(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    write_report(report(), file)
    given = ["--images-per-day", "1e6", "--model", "pocket", "--rates", str(file)]
    result = CliRunner().invoke(cli, ["plan", *given])
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(set(line) == {"what", "needed", "unit", "because"} for line in lines)
    assert {"peak", "cores for the model", "partitions"} <= {line["what"] for line in lines}


def test_the_command_prints_a_table_where_it_is_asked_to() -> None:
    given = ["--peak-rate", "100", "--model-rate", "4000", "--core-ms", "6"]
    rates = ["--process-rate", "250", "--cached-rate", "2500", "--format", "table"]
    result = CliRunner().invoke(cli, ["plan", *given, *rates])
    assert result.exit_code == 0
    assert "worker processes" in result.stdout


def test_what_a_report_lacks_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    write_report(report(), file)
    result = CliRunner().invoke(cli, ["plan", "--images-per-day", "1e6", "--rates", str(file)])
    assert result.exit_code == 2
    assert "--model-rate" in result.stderr


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--images-per-day", "1", "--peak-rate", "1"],
        ["--images-per-day", "-1"],
        ["--images-per-day", "1", "--headroom", "0"],
        ["--images-per-day", "1", "--cached", "0.8", "--duplicates", "0.8"],
        ["--images-per-day", "1", "--rates", "/nowhere"],
        ["--images-per-day", "1", "--model-rate", "1", "--model-core-ms", "1"],
    ],
)
def test_what_makes_no_plan_is_refused(given: list[str]) -> None:
    result = CliRunner().invoke(cli, ["plan", *given])
    assert result.exit_code == 2
    assert result.stderr
