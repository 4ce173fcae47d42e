"""Lists that settle images before the model is asked, and brakes that a fleet has in common."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import redis
from PIL import Image

from tests.e2e.scene import (
    command,
    eventually,
    fake_worker,
    logged,
    metric,
    picture,
    request,
    requests_of,
    verdicts_on,
    write_policy,
)
from tests.policy_factory import category
from worker.demo.image_server import Reply
from worker.demo.stage import Exchange, Stage
from worker.perceptual import perceptual_hash
from worker.schema import Verdict


def blobs(seed: int) -> Image.Image:
    """Bluish, so that the policy by itself allows it."""
    grid = np.random.default_rng(seed).integers(0, 120, (9, 12, 3), dtype=np.uint8)
    grid[:, :, 2] += 130
    return Image.fromarray(grid).resize((640, 480), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_list(folder: Path, *images: Image.Image) -> None:
    lines = [f"{perceptual_hash(image)}\n" for image in images]
    (folder / "known.txt").write_text("# seen before\n" + "".join(lines))


def told_of(on: Stage) -> int:
    """Requests that the fleet counts."""
    with redis.Redis.from_url(on.redis) as admin:
        keys = list(admin.scan_iter("*brake:*:all"))
        return int(admin.pfcount(*keys)) if keys else 0


LISTS = [{"id": "known", "file": "known.txt", "action": "block"}]


async def test_a_listed_picture_is_blocked_in_other_sizes_and_qualities_and_never_embedded(
    on: Stage,
) -> None:
    known, other = blobs(1), blobs(2)
    write_list(on.policy.parent, known)
    write_policy(on.policy, lists=LISTS)
    on.images.replies |= {
        "/same.jpg": Reply(jpeg(known)),
        "/small.jpg": Reply(jpeg(known.resize((200, 150)), quality=40)),
        "/other.jpg": Reply(jpeg(other)),
    }
    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            verdicts = await verdicts_on(exchange, requests_of(on, on.images.replies))
            again = await verdicts_on(exchange, requests_of(on, ["/other.jpg"], "again"))
            listed = metric(worker, "imagewarden_listed_total", list="known", action="block")
            write_list(on.policy.parent, known, other)
            await eventually(
                lambda: len(list(worker.lines("policy_loaded"))) == 2, "the longer list is read"
            )
            after = await verdicts_on(exchange, requests_of(on, ["/other.jpg"], "after"))
    for name in ("/same.jpg", "/small.jpg"):
        verdict = verdicts[name]
        assert (verdict.decision, verdict.categories) == ("block", ())
        assert verdict.listed is not None
        assert verdict.listed.distance <= 31
        assert verdict.image is not None
        assert verdict.image.frames_scored == 0
    assert verdicts["/other.jpg"].decision == "allow"
    assert again["again/other.jpg"].cache == "memory"
    assert listed == 2
    # what was embedded before it was listed is found by the hash that was kept
    assert after["after/other.jpg"].listed is not None
    assert after["after/other.jpg"].cache == "memory"


async def test_a_list_that_nothing_could_be_on_ends_it_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("0f" * 32 + "\n")
    write_policy(tmp_path / "policy.yaml", lists=LISTS)
    settings = {
        "POLICIES": str(tmp_path / "policy.yaml"),
        "DECODE__PERCEPTUAL_HASH": "false",
        "HTTP__PORT": "0",
    }
    done = command("run", settings=settings)
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert "set IMAGEWARDEN_DECODE__PERCEPTUAL_HASH to true" in sentence


async def test_a_brake_holds_across_the_fleet_and_shows_in_verdicts_metrics_and_the_log(
    on: Stage,
) -> None:
    red = category("red", contrast=["green", "blue"], block=0.9, block_uncalibrated=True)
    limits = {"max_block_rate": {"per": "10m", "share": 0.5, "min_requests": 20}}
    write_policy(on.policy, red, limits=limits)
    on.images.replies |= {"/red.jpg": Reply(picture("red"))}

    def asked(name: str) -> dict[str, bytes]:
        return {name: request(name, on.images.url("/red.jpg"), tenant="shop")}

    async with Exchange(on) as exchange:
        with fake_worker(on) as worker:
            before = await verdicts_on(
                exchange, {k: v for n in range(19) for k, v in asked(f"one-{n}").items()}
            )
            await eventually(lambda: told_of(on) == 19, "the fleet was told")
            worker.stop()
        with fake_worker(on) as worker:  # another process, that has seen nothing yet
            braked: list[Verdict] = []
            await verdicts_on(exchange, asked("two"))
            await eventually(lambda: told_of(on) == 20, "it told the fleet, and was told")
            for number in range(18):  # too few to engage it by this worker's requests alone
                [verdict] = (await verdicts_on(exchange, asked(f"two-{number}"))).values()
                if verdict.brake:
                    braked.append(verdict)
                    break
            await eventually(lambda: logged(worker, "brake_engaged"), "the log says so")
            assert metric(worker, "imagewarden_brakes_engaged", policy="test") == 1
            assert metric(worker, "imagewarden_brake_local") == 0
            [line] = worker.lines("brake_engaged")
            assert (line["tenant"], line["scope"]) == ("shop", "fleet")
    assert {verdict.decision for verdict in before.values()} == {"block"}
    [verdict] = braked
    assert (verdict.decision, verdict.action) == ("review", "review")
    assert verdict.brake is not None
    assert (verdict.brake.share, verdict.brake.scope) == (1.0, "fleet")
    assert verdict.brake.requests >= 20
    assert verdict.categories[0].action == "block"
