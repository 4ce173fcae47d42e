"""`imagewarden settings show`: what is in force and where it came from, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from worker.cli import cli
from worker.commands.settings_show import masked_url
from worker.settings_load import variables

SECRET = "hunter2hunter2hunter2"
SECRETS = {
    "IMAGEWARDEN_REDIS__URL": f"rediss://user:{SECRET}@redis.example:6380/3?password={SECRET}",
    "IMAGEWARDEN_CACHE__URL_KEY": SECRET,
    "IMAGEWARDEN_FETCH__EGRESS_PROXY": f"http://user:{SECRET}@proxy.example:3128",
    "IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL": "SASL_SSL",
    "IMAGEWARDEN_KAFKA_SECURITY__CERT_FILE": __file__,
    "IMAGEWARDEN_KAFKA_SECURITY__KEY_PASSWORD": SECRET,
    "IMAGEWARDEN_KAFKA_SECURITY__SASL_MECHANISM": "PLAIN",
    "IMAGEWARDEN_KAFKA_SECURITY__SASL_USERNAME": "worker",
    "IMAGEWARDEN_KAFKA_SECURITY__SASL_PASSWORD": SECRET,
}


def shown(environment: dict[str, str], *arguments: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(cli, ["settings", "show", *arguments], env=environment)
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["variable"]: line for line in lines}


def test_every_setting_is_shown_with_its_value() -> None:
    told = shown({"IMAGEWARDEN_FETCH__PORTS": "80,8080"})
    assert list(told) == list(variables())
    assert told["IMAGEWARDEN_FETCH__PORTS"]["value"] == [80, 8080]
    assert told["IMAGEWARDEN_REDIS__URL"]["value"] is None
    assert told["IMAGEWARDEN_WORK__IMAGES"]["value"] == 48


def test_each_value_is_shown_with_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('policies = ["a.yaml"]\n[kafka]\ngroup = "file"\nverdicts_topic = "v"\n')
    told = shown({"IMAGEWARDEN_CONFIG": str(file), "imagewarden_kafka__group": "environment"})
    origins = {
        name: told[f"IMAGEWARDEN_{name}"]["from"]
        for name in ("POLICIES", "KAFKA__GROUP", "KAFKA__VERDICTS_TOPIC", "KAFKA__REQUESTS_TOPIC")
    }
    assert origins == {
        "POLICIES": f"{file}: policies",
        "KAFKA__GROUP": "environment variable imagewarden_kafka__group",
        "KAFKA__VERDICTS_TOPIC": f"{file}: kafka.verdicts_topic",
        "KAFKA__REQUESTS_TOPIC": "default",
    }
    assert told["IMAGEWARDEN_KAFKA__GROUP"]["value"] == "environment"


def test_only_what_something_sets_is_shown_where_that_is_asked_for() -> None:
    assert list(shown({"IMAGEWARDEN_LOG__LEVEL": "debug"}, "--changed")) == [
        "IMAGEWARDEN_LOG__LEVEL"
    ]


@pytest.mark.parametrize("format", ["table", "jsonl"])
def test_secrets_are_masked(format: str) -> None:
    done = CliRunner().invoke(cli, ["settings", "show", "--format", format], env=SECRETS)
    assert done.exit_code == 0
    assert "hunter2" not in done.stdout + done.stderr
    assert "rediss://***@redis.example:6380/3?***" in done.stdout
    assert "http://***@proxy.example:3128" in done.stdout


@given(st.text(min_size=6), st.booleans())
@example("secret/x", False)
@example("1234567/x", False)
@example("secret?x@host", False)
@example("secret#x", False)
@example("se@cret", False)
def test_no_password_of_a_url_is_shown_however_it_is_written(password: str, quoted: bool) -> None:
    written = quote(password, safe="") if quoted else password
    for user in ("user:", ":", ""):
        url = f"redis://{user}{written}@redis.example:6379/0"
        assume(password not in "redis://***@redis.example:6379/0?***")
        assert password not in masked_url(url)
        assert masked_url(url).removesuffix("?***") in (
            "***",
            "redis://***@redis.example:6379/0",
        )


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss://r:6380/0?ssl_ca_certs=/ca.pem", "rediss://r:6380/0?***"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?***"),
        ("unix://user:secret@/run/redis.sock", "***"),
    ],
)
def test_what_is_no_secret_of_a_url_is_shown(url: str, masked: str) -> None:
    assert masked_url(url) == masked


def test_a_wrong_setting_is_a_sentence_and_exit_code_2() -> None:
    done = CliRunner().invoke(cli, ["settings", "show"], env={"IMAGEWARDEN_WORK__IMAGES": "0"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "IMAGEWARDEN_WORK__IMAGES is wrong" in done.stderr
