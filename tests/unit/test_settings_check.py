"""`imagewarden settings check`: what is wrong without a server, and how it is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.policy_factory import category, policy_bytes
from worker.cli import cli
from worker.commands.render import Exit, Format
from worker.commands.service_checks import Note, egress_problems, kafka_problems, redis_problems
from worker.commands.settings_check import CHECKS, check_settings
from worker.endpoints import Health, open_endpoints
from worker.errors import Misconfigured
from worker.model_check import device_at_hand, model_at_hand
from worker.settings import Settings
from worker.settings_load import load_settings

NOWHERE = "127.0.0.1:1"
SECRET = "hunter2hunter2hunter2"


def told(name: str, **settings: Any) -> list[str]:
    """What a check says is wrong."""
    return [each for each in CHECKS[name](load_settings(settings)) if not isinstance(each, Note)]


def printed(
    capsys: pytest.CaptureFixture[str],
    checks: dict[str, Callable[[Settings], Iterable[str]]],
    seconds: float = 30.0,
) -> tuple[Exit, list[dict[str, Any]]]:
    code = check_settings(Settings(), seconds, Format.JSONL, checks)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@contextmanager
def listening() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def answering(line: str) -> Iterator[int]:
    """A port that says ``line`` to the first thing that anybody says, and hangs up."""

    def answer() -> None:
        with server.accept()[0] as client:
            client.recv(4096)
            client.sendall(f"{line}\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_a_line_is_printed_for_each_check_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = printed(
        capsys,
        {
            "well": lambda settings: [],
            "noted": lambda settings: [Note("by the way")],
            "wrong": lambda settings: ["this", "and that"],
        },
    )
    assert code == Exit.NOT_ALL_ALLOWED
    assert lines == [
        {"check": "well", "ok": True, "says": ""},
        {"check": "noted", "ok": True, "says": "by the way"},
        {"check": "wrong", "ok": False, "says": "this"},
        {"check": "wrong", "ok": False, "says": "and that"},
    ]


def test_with_nothing_wrong_the_exit_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = printed(capsys, {"noted": lambda settings: [Note("by the way")]})
    assert code == Exit.ALL_ALLOWED


def test_a_check_that_hangs_is_wrong_and_holds_up_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    never = threading.Event()

    def hanging(settings: Settings) -> Iterator[str]:
        yield "so much was found"
        never.wait()

    code, lines = printed(capsys, {"hangs": hanging, "well": lambda settings: []}, seconds=0.2)
    never.set()
    assert code == Exit.NOT_ALL_ALLOWED
    assert [(line["check"], line["ok"]) for line in lines] == [
        ("hangs", False),
        ("hangs", False),
        ("well", True),
    ]
    assert "not known within 0.2 s" in lines[1]["says"]


def test_what_nobody_foresaw_is_not_taken_for_a_wrong_setting() -> None:
    def broken(settings: Settings) -> Iterator[str]:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        check_settings(Settings(), 30.0, Format.JSONL, {"broken": broken})


def test_an_absent_broker_is_a_sentence() -> None:
    settings = load_settings({"kafka": {"bootstrap": [NOWHERE]}})
    with pytest.raises(ConnectionError, match=f"no Kafka broker answers at {NOWHERE}"):
        list(kafka_problems(settings))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"redis://user:{SECRET}@{NOWHERE}/0", f"no Redis answers at redis://***@{NOWHERE}/0 "),
        (f"redis://{SECRET}#x@{NOWHERE}/0", "no Redis answers at *** "),
        ("unix:///nowhere/redis.sock", "no Redis answers at unix:///nowhere/redis.sock "),
        (f"redis://{NOWHERE}/0?no_such_option={SECRET}", "is no URL of a Redis"),
    ],
)
def test_an_absent_redis_is_a_sentence_without_its_password(url: str, sentence: str) -> None:
    [said] = redis_problems(load_settings({"redis": {"url": url}}))
    assert sentence in said
    assert SECRET not in said


def test_a_redis_that_quotes_what_it_does_not_know_is_not_quoted() -> None:
    with answering(f"-ERR unknown command `AUTH`, with args beginning with: `{SECRET}`, ") as port:
        [said] = redis_problems(
            load_settings({"redis": {"url": f"redis://:{SECRET}@127.0.0.1:{port}"}})
        )
    assert "refuses what we ask (unknown command `AUTH`)" in said
    assert SECRET not in said


def test_without_a_redis_nothing_is_wrong() -> None:
    [note] = redis_problems(Settings())
    assert isinstance(note, Note)


def test_an_egress_proxy_that_cannot_be_reached_is_a_sentence_without_its_password() -> None:
    [said] = egress_problems(
        load_settings({"fetch": {"egress_proxy": f"http://user:{SECRET}@{NOWHERE}"}})
    )
    assert said.startswith(f"the egress proxy at {NOWHERE} cannot be reached (Connection refused)")


def test_an_egress_proxy_that_can_be_reached_is_well() -> None:
    with listening() as port:
        assert told("egress", fetch={"egress_proxy": f"http://127.0.0.1:{port}"}) == []


def test_a_ca_file_without_certificates_is_a_sentence() -> None:
    with pytest.raises(Misconfigured, match="no certificate authority can be read"):
        told("egress", fetch={"ca_file": __file__})


def test_a_policy_with_a_typo_is_told_of_by_its_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\nid: p\nmodle: pocket\n")
    said = told("policies", policies=[str(wrong), str(tmp_path / "absent.yaml")])
    assert any(each.startswith(f"{wrong}:3:") and "modle" in each for each in said)
    assert any("absent.yaml" in each and "cannot be read" in each for each in said)


def test_a_policy_for_another_model_and_one_of_the_same_id_are_told_of(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_bytes(policy_bytes(categories=[category()]))
    second.write_bytes(policy_bytes(categories=[category()], model="another"))
    other, same = told("policies", policies=[str(first), str(second)])
    assert "second.yaml is written for the model 'another'" in other
    assert "second.yaml has the id" in same


def test_a_decoder_without_memory_is_a_sentence() -> None:
    [said] = told("decoder", decode={"memory_bytes": 1, "processes": 1})
    assert "do not decode a small image" in said
    assert "IMAGEWARDEN_DECODE__MEMORY_BYTES" in said


@pytest.mark.parametrize("max_pixels", [1, 500_000, 50_000_000])
def test_a_decoder_that_starts_is_well_whatever_the_largest_image(max_pixels: int) -> None:
    assert told("decoder", decode={"processes": 1, "max_pixels": max_pixels}) == []


def test_a_port_that_another_program_has_is_a_sentence() -> None:
    with listening() as port:
        [said] = told("endpoints", http={"port": port})
    assert "cannot serve metrics" in said


def test_a_port_that_a_worker_serves_on_is_well() -> None:
    well = Health(True, "well")
    endpoints = open_endpoints("127.0.0.1", 0, live=lambda: well, ready=lambda: well)
    try:
        port = int(endpoints.address.rpartition(":")[2])
        assert told("endpoints", http={"port": port}) == []
    finally:
        endpoints.close()


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("ViT-L-14/no-such-tag", None, "open_clip knows no model"),
        ("local-dir:/nowhere", None, "/nowhere is not there"),
    ],
)
def test_a_model_that_cannot_be_had_is_a_sentence(
    name: str, config: str | None, sentence: str
) -> None:
    with pytest.raises(Misconfigured, match=sentence):
        model_at_hand(name, None, config)


@pytest.mark.parametrize(
    ("file", "config", "sentence"),
    [
        ("absent.safetensors", "ViT-B-32", "is not a file"),
        ("there.safetensors", None, "comes without IMAGEWARDEN_MODEL__CONFIG"),
        ("there.safetensors", "no-such", "neither an open_clip architecture nor a file"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_a_sentence(
    tmp_path: Path, file: str, config: str | None, sentence: str
) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"weights")
    with pytest.raises(Misconfigured, match=sentence):
        model_at_hand("ours", tmp_path / file, config)


def test_a_model_that_is_at_hand_is_told_of_with_where_it_is(tmp_path: Path) -> None:
    checkpoint = tmp_path / "there.safetensors"
    checkpoint.write_bytes(b"weights")
    assert str(checkpoint) in model_at_hand("ours", checkpoint, "ViT-B-32")
    assert "downloaded from" in model_at_hand("ViT-L-14/datacomp_xl_s13b_b90k", None, None)


def test_a_device_that_is_not_there_is_a_sentence() -> None:
    assert device_at_hand("cpu") == "cpu"
    with pytest.raises(Misconfigured, match="cannot be used"):
        device_at_hand("cuda:99")


def test_settings_that_do_not_load_are_sentences_and_exit_code_2() -> None:
    done = CliRunner().invoke(cli, ["settings", "check"], env={"IMAGEWARDEN_WORK__IMAGES": "0"})
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert "IMAGEWARDEN_WORK__IMAGES is wrong" in done.stderr
