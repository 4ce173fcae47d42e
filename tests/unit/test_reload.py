from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes import FakeEncoder
from tests.policy_factory import category, head_bytes, policy_bytes
from worker import telemetry
from worker.errors import Misconfigured
from worker.policy_files import MAX_HEAD_BYTES
from worker.policy_yaml import InvalidPolicy
from worker.reload import PolicyStore
from worker.types import Float32Rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.yaml"


def write(path: Path, *categories: dict[str, Any], **keys: Any) -> None:
    replace(path, policy_bytes(*(categories or [category()]), **keys))


def replace(path: Path, content: bytes) -> None:
    """As editors do: a new file, moved over the old one."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def overwrite_unnoticeably(path: Path, content: bytes) -> None:
    """In place, with the size and the time that the file has."""
    old = path.stat()
    assert len(content) == old.st_size
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def store_of(*paths: Path, encoder: FakeEncoder | None = None, **options: Any) -> PolicyStore:
    return PolicyStore(paths, encoder or FakeEncoder(), interval_seconds=0.01, **options)


@asynccontextmanager
async def watched(*paths: Path, **options: Any) -> AsyncIterator[PolicyStore]:
    """A store that is loaded and applies edits."""
    store = store_of(*paths, **options)
    await store.load_all()
    task = asyncio.create_task(store.watch())
    try:
        yield store
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def until_version(version: int, store: PolicyStore, policy_id: str | None = None) -> None:
    await until(lambda: store.current(policy_id).policy.version == version)


def metric(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"imagewarden_{name}", labels) or 0.0


def reloads(policy: str, outcome: str) -> float:
    return metric("policy_reloads_total", policy=policy, outcome=outcome)


def versions_told(policy: str) -> list[str]:
    return [
        sample.labels["version"]
        for family in telemetry.POLICY_INFO.collect()
        for sample in family.samples
        if sample.labels["policy"] == policy
    ]


# ---------------------------------------------------------------- at start


async def test_what_never_happened_to_a_policy_is_told_as_0(path: Path) -> None:
    write(path, id="never-edited")
    await store_of(path).load_all()
    for outcome in ("applied", "refused"):
        labels = {"policy": "never-edited", "outcome": outcome}
        assert telemetry.REGISTRY.get_sample_value("imagewarden_policy_reloads_total", labels) == 0


async def test_a_request_that_names_no_policy_gets_the_first_file(tmp_path: Path) -> None:
    first, second = tmp_path / "z.yaml", tmp_path / "a.yaml"
    write(first, id="first")
    write(second, id="second")
    store = store_of(first, second)
    await store.load_all()

    assert store.current().policy.id == store.current(None).policy.id == "first"
    assert store.current("second").policy.id == "second"
    with pytest.raises(KeyError):
        store.current("third")


async def test_a_broken_file_at_start_is_raised(path: Path) -> None:
    write(path, category(prompts=[]))
    with pytest.raises(InvalidPolicy, match=r"policy\.yaml:1:\d+: `prompts` is an empty list"):
        await store_of(path).load_all()


async def test_a_policy_for_another_model_at_start_is_raised(path: Path) -> None:
    write(path, model="another")
    with pytest.raises(Misconfigured, match="written for the model 'another'"):
        await store_of(path).load_all()


async def test_two_files_with_one_id_at_start_are_raised(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", id="same")
    write(tmp_path / "b.yaml", id="same")
    with pytest.raises(Misconfigured, match=r"b\.yaml: another file has the id 'same'"):
        await store_of(tmp_path / "a.yaml", tmp_path / "b.yaml").load_all()


async def test_no_file_at_start_is_raised() -> None:
    with pytest.raises(Misconfigured, match="no policy file"):
        await store_of().load_all()


# ---------------------------------------------------------------- edits


async def test_an_edit_takes_effect_while_running(path: Path) -> None:
    write(path, id="edited", version=1)
    before = reloads("edited", "applied")
    async with watched(path) as store:
        assert versions_told("edited") == ["1"]
        write(path, category(review=0.7), id="edited", version=2)
        await until_version(2, store)

        assert store.current("edited").policy.categories[0].thresholds.review == 0.7
        assert reloads("edited", "applied") == before + 1
        assert versions_told("edited") == ["2"]


async def test_an_edit_embeds_only_the_texts_that_are_new_and_few_a_call(path: Path) -> None:
    write(path)
    encoder = FakeEncoder()
    async with watched(path, encoder=encoder) as store:
        encoder.texts.clear()
        new = [f"new prompt {number}" for number in range(20)]
        write(path, category(prompts=["red", *new]), version=2)
        await until_version(2, store)

        assert sorted(text for call in encoder.texts for text in call) == sorted(new)
        assert [len(call) for call in encoder.texts] == [16, 4]


async def test_no_text_is_embedded_twice_however_many_categories_and_files_use_it(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    many = [
        category(f"c{n}", prompts=[f"thing {n}", f"thing {n + 1}"], exceptions=["a drawing"])
        for n in range(0, 40, 2)
    ]
    shared = {"templates": ["{}", "a photo of {}"], "contrast": ["food", "a landscape"]}
    write(first, *many, id="first", **shared)
    write(second, *many[:10], category("own", prompts=["own"]), id="second", **shared)
    encoder = FakeEncoder()
    async with watched(first, second, encoder=encoder) as store:
        write(first, *many[5:], category("new", prompts=["new"]), id="first", version=2, **shared)
        await until_version(2, store, "first")

    asked = [text for call in encoder.texts for text in call]
    assert len(asked) == len(set(asked)) == 2 * (40 + 4 + 2)
    assert {"a photo of thing 39", "a drawing", "a photo of own", "new"} <= set(asked)


async def test_an_edit_of_thresholds_embeds_nothing(path: Path) -> None:
    write(path)
    encoder = FakeEncoder()
    async with watched(path, encoder=encoder) as store:
        encoder.texts.clear()
        write(path, category(review=0.6), version=2)
        await until_version(2, store)

        assert encoder.texts == []


async def test_a_symlink_that_is_swapped_is_an_edit(tmp_path: Path) -> None:
    for version in (1, 2):
        folder = tmp_path / f"..version-{version}"
        folder.mkdir()
        write(folder / "policy.yaml", version=version)
    data = tmp_path / "..data"
    data.symlink_to("..version-1")
    mounted = tmp_path / "policy.yaml"
    mounted.symlink_to("..data/policy.yaml")
    async with watched(mounted) as store:
        swapped = tmp_path / "..data_tmp"
        swapped.symlink_to("..version-2")
        swapped.replace(data)
        await until_version(2, store)


def project(volume: Path, files: Mapping[str, bytes]) -> None:
    """Brings a volume to a ConfigMap's content as the kubelet does: a new folder, one link swapped
    for another, then the old folder removed. What is mounted are links through that one."""
    data = volume / "..data"
    old = volume / os.readlink(data) if data.is_symlink() else None
    new = Path(tempfile.mkdtemp(prefix="..2026_11_21_", dir=volume))
    for name, content in files.items():
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_bytes(content)
        top = Path(name).parts[0]
        if not (volume / top).is_symlink():
            (volume / top).symlink_to(f"..data/{top}")
    swapped = volume / "..data_tmp"
    swapped.symlink_to(new.name)
    swapped.replace(data)
    if old is not None:
        shutil.rmtree(old)


async def test_a_policy_and_its_head_in_a_config_map_are_brought_up_to_date_together(
    tmp_path: Path,
) -> None:
    info = FakeEncoder().info

    def content(version: int) -> dict[str, bytes]:
        headed = {"id": "red", "head": "heads/red.safetensors", "review": 0.5}
        head = head_bytes(info, [1.0] * info.dimension, bias=-float(version))
        return {
            "policy.yaml": policy_bytes(headed, id="projected", version=version),
            "heads/red.safetensors": head,
        }

    def seen(store: PolicyStore) -> tuple[int, float]:
        policy = store.current().policy
        assert policy.categories[0].head is not None
        return policy.version, policy.categories[0].head.bias

    project(tmp_path, content(1))
    async with watched(tmp_path / "policy.yaml") as store:
        assert seen(store) == (1, -1.0)
        for version in (2, 3, 4):
            project(tmp_path, content(version))
            await until(lambda wanted=(version, -float(version)): seen(store) == wanted)
        await until(lambda: metric("policy_stale", policy="projected") == 0)


async def test_an_edit_in_place_of_equal_size_and_time_is_seen(path: Path) -> None:
    write(path, version=1)
    async with watched(path) as store:
        overwrite_unnoticeably(path, policy_bytes(category(), version=2))
        await until_version(2, store)


async def test_each_of_several_files_is_watched(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    write(first, id="a")
    write(second, id="b")
    async with watched(first, second) as store:
        write(second, id="b", version=2)
        await until_version(2, store, "b")
        assert store.current("a").policy.version == 1
        assert store.current().policy.id == "a"


async def test_a_head_that_is_fitted_again_is_an_edit_of_the_policy_that_names_it(
    path: Path,
) -> None:
    info = FakeEncoder().info
    head = path.with_name("red.safetensors")
    head.write_bytes(head_bytes(info, [1.0] * info.dimension))
    write(path, {"id": "red", "head": head.name, "review": 0.5}, id="headed")
    before = reloads("headed", "applied")
    async with watched(path) as store:
        old = store.current()
        replace(head, head_bytes(info, [1.0] * info.dimension, bias=-3.0))
        await until(lambda: store.current() is not old)

        new = store.current().policy
        assert new.categories[0].head is not None
        assert new.categories[0].head.bias == -3.0
        assert new.digest != old.policy.digest
        await until(lambda: reloads("headed", "applied") == before + 1)


async def test_a_list_that_grows_in_place_is_an_edit_of_the_policy_that_names_it(
    path: Path,
) -> None:
    hashes = path.with_name("bad.txt")
    hashes.write_text("0" * 64 + "\n")
    write(path, lists=[{"id": "bad", "file": hashes.name, "action": "block"}])
    async with watched(path) as store:
        with hashes.open("a") as file:
            file.write("f" * 64 + "\n")
        await until(lambda: len(store.current().policy.lists[0].hashes) == 2)


async def test_a_head_that_is_damaged_is_refused_and_good_again_once_restored(path: Path) -> None:
    info = FakeEncoder().info
    good = head_bytes(info, [1.0] * info.dimension)
    head = path.with_name("red.safetensors")
    head.write_bytes(good)
    write(path, {"id": "red", "head": head.name, "review": 0.5}, id="damaged")
    async with watched(path) as store:
        old = store.current()
        head.unlink()
        await until(lambda: metric("policy_stale", policy="damaged") == 1)
        assert store.current() is old
        head.write_bytes(good)
        await until(lambda: metric("policy_stale", policy="damaged") == 0)


async def test_a_head_for_another_model_is_refused_and_the_last_good_policy_stays(
    path: Path,
) -> None:
    info = FakeEncoder().info
    path.with_name("other.safetensors").write_bytes(head_bytes(FakeEncoder(8).info, [1.0] * 8))
    write(path, id="other-space")
    with capture_logs() as logs:
        async with watched(path) as store:
            good = store.current()
            write(path, {"id": "red", "head": "other.safetensors", "review": 0.5}, id="other-space")
            await until(lambda: metric("policy_stale", policy="other-space") == 1)
            assert store.current() is good
    (told,) = [line for line in logs if line["event"] == "policy_refused"]
    assert f"another model than {info.name!r}" in told["problems"][0]


async def test_images_are_decided_on_while_an_edit_is_being_embedded(path: Path) -> None:
    class Gated(FakeEncoder):
        open = threading.Event()
        entered = threading.Event()

        def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
            if "slow" in texts:
                self.entered.set()
                assert self.open.wait(30)
            return super().encode_texts(texts)

    write(path)
    encoder = Gated()
    async with watched(path, encoder=encoder) as store:
        write(path, category(prompts=["slow"]), version=2)
        try:
            await until(encoder.entered.is_set)
            assert store.current().policy.version == 1
        finally:
            encoder.open.set()
        await until_version(2, store)


# ---------------------------------------------------------------- refused edits


@pytest.mark.parametrize(
    ("categories", "keys", "problem"),
    [
        ([category(prompts=[])], {}, "`prompts` is an empty list"),
        ([category()], {"id": "renamed"}, "the id was 'refused' and is now 'renamed'"),
        ([category()], {"model": "another"}, "written for the model 'another'"),
    ],
    ids=["invalid", "renamed", "another model"],
)
async def test_a_refused_edit_is_told_once_and_the_last_good_policy_stays(
    path: Path, categories: list[dict[str, Any]], keys: dict[str, Any], problem: str
) -> None:
    write(path, id="refused")
    before = reloads("refused", "refused")
    with capture_logs() as logs:
        async with watched(path) as store:
            good = store.current()
            write(path, *categories, version=2, **{"id": "refused", **keys})
            await until(lambda: metric("policy_stale", policy="refused") == 1)
            assert store.current() is good

            write(path, category(review=0.8), id="refused", version=3)
            await until_version(3, store)

    assert metric("policy_stale", policy="refused") == 0
    assert reloads("refused", "refused") == before + 1
    (told,) = [line for line in logs if line["event"] == "policy_refused"]
    assert told["log_level"] == "error"
    assert problem in told["problems"][0]


async def test_a_refused_edit_is_not_loaded_again_and_again(tmp_path: Path) -> None:
    broken, other = tmp_path / "broken.yaml", tmp_path / "other.yaml"
    write(broken, id="broken")
    write(other, id="other")
    before = reloads("broken", "refused")
    async with watched(broken, other) as store:
        replace(broken, b"not: a policy")
        await until(lambda: metric("policy_stale", policy="broken") == 1)
        for version in (2, 3, 4):  # each seen in a later round than the one before
            write(other, id="other", version=version)
            await until_version(version, store, "other")

        assert reloads("broken", "refused") == before + 1


async def test_a_head_that_is_too_large_is_refused_once(tmp_path: Path) -> None:
    large, other = tmp_path / "large.yaml", tmp_path / "other.yaml"
    write(large, id="large")
    write(other, id="other")
    before = reloads("large", "refused")
    async with watched(large, other) as store:
        tmp_path.joinpath("h.safetensors").write_bytes(bytes(MAX_HEAD_BYTES + 1000))
        write(large, {"id": "red", "head": "h.safetensors", "review": 0.5}, id="large")
        await until(lambda: metric("policy_stale", policy="large") == 1)
        for version in (2, 3, 4):  # each seen in a later round than the one before
            write(other, id="other", version=version)
            await until_version(version, store, "other")

        assert reloads("large", "refused") == before + 1


async def test_a_refused_edit_that_is_taken_back_is_good_again(path: Path) -> None:
    good = policy_bytes(category(), id="reverted")
    replace(path, good)
    async with watched(path):
        replace(path, b"{")
        await until(lambda: metric("policy_stale", policy="reverted") == 1)
        replace(path, good)
        await until(lambda: metric("policy_stale", policy="reverted") == 0)


async def test_a_file_that_is_gone_leaves_its_policy_until_it_is_back(path: Path) -> None:
    write(path, id="gone")
    before = reloads("gone", "refused")
    async with watched(path) as store:
        os.rename(path, f"{path}.away")
        await until(lambda: metric("policy_stale", policy="gone") == 1)
        assert store.current("gone").policy.version == 1
        os.rename(f"{path}.away", path)
        await until(lambda: metric("policy_stale", policy="gone") == 0)
        assert reloads("gone", "refused") == before + 1


async def test_a_failure_of_the_encoder_is_no_refusal_and_ends_the_watch(path: Path) -> None:
    class Failing(FakeEncoder):
        def encode_texts(self, texts: Sequence[str]) -> Float32Rows:
            if "poison" in texts:
                raise RuntimeError("the device is gone")
            return super().encode_texts(texts)

    write(path)
    store = store_of(path, encoder=Failing())
    await store.load_all()
    write(path, category(prompts=["poison"]), version=2)
    with pytest.raises(RuntimeError, match="the device is gone"):
        async with asyncio.timeout(30):
            await store.watch()


# ---------------------------------------------------------------- what is kept


async def test_texts_that_no_policy_uses_are_dropped_beyond_the_limit(path: Path) -> None:
    encoder = FakeEncoder()
    write(path, category(prompts=["one", "two"]))
    async with watched(path, encoder=encoder, kept_texts=4) as store:
        for version, prompts in enumerate((["three"], ["four", "five"], ["one"]), start=2):
            encoder.texts.clear()
            write(path, category(prompts=prompts), version=version)
            await until_version(version, store)

        assert encoder.texts == [("one",)]  # asked for again: it was dropped, "blue" was not


async def test_texts_within_the_limit_are_kept_for_when_they_come_back(path: Path) -> None:
    encoder = FakeEncoder()
    write(path, category(prompts=["one", "two"]))
    async with watched(path, encoder=encoder) as store:
        write(path, category(prompts=["three"]), version=2)
        await until_version(2, store)
        encoder.texts.clear()
        write(path, category(prompts=["two"]), version=3)
        await until_version(3, store)

        assert encoder.texts == []


# ---------------------------------------------------------------- lists of hashes


async def test_edit_that_adds_lists_is_refused_where_images_get_no_hashes(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    (tmp_path / "known.txt").write_text("0f" * 32 + "\n")
    path.write_bytes(policy_bytes(category(), id="hashless", version=1))
    lists = [{"id": "known", "file": "known.txt", "action": "block"}]
    before = metric("policy_reloads_total", policy="hashless", outcome="refused")
    async with watched(path, hashed=False) as store:
        replace(path, policy_bytes(category(), id="hashless", version=2, lists=lists))
        await until(
            lambda: (
                metric("policy_reloads_total", policy="hashless", outcome="refused") == before + 1
            )
        )
        assert store.current().policy.version == 1
