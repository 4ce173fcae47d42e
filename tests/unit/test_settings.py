from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import Misconfigured
from worker.settings import load_settings, variables


def test_environment_sets_a_nested_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEWARDEN_FETCH__MAX_BYTES", "1234")
    assert load_settings().fetch.max_bytes == 1234


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEWARDEN_KAFKA__BOOTSTRAP", "one:9092, two:9092")
    monkeypatch.setenv("IMAGEWARDEN_FETCH__PORTS", "80,8080")
    settings = load_settings()
    assert settings.kafka.bootstrap == ("one:9092", "two:9092")
    assert settings.fetch.ports == (80, 8080)


def test_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[kafka]\ngroup = "from-file"\nverdicts_topic = "v"\n')
    monkeypatch.setenv("IMAGEWARDEN_CONFIG", str(file))
    monkeypatch.setenv("IMAGEWARDEN_KAFKA__GROUP", "from-environment")
    kafka = load_settings().kafka
    assert (kafka.group, kafka.verdicts_topic) == ("from-environment", "v")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("IMAGEWARDEN_FETCH__ATTEMPTS", "-3", "IMAGEWARDEN_FETCH__ATTEMPTS is wrong"),
        ("IMAGEWARDEN_HTTP__PORT", "http", "IMAGEWARDEN_HTTP__PORT is wrong"),
        ("IMAGEWARDEN_HTTP__PORT", "70000", "less than or equal to 65535"),
        ("IMAGEWARDEN_MODEL__PRECISION", "fp8", "'auto', 'fp32', 'bf16' or 'fp16'"),
        ("IMAGEWARDEN_KAFKA__BOOTSTRAPP", "x", "did you mean IMAGEWARDEN_KAFKA__BOOTSTRAP?"),
        ("IMAGEWARDEN_POLICY", "x", "did you mean IMAGEWARDEN_POLICIES?"),
        ("IMAGEWARDEN_CONFIG", "/nowhere.toml", "/nowhere.toml, which is not a file"),
    ],
)
def test_wrong_setting_is_named_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Misconfigured) as refused:
        load_settings()
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[kafka]\ngrup = 'x'\n", "kafka.grup is no setting; did you mean"),
        ("[kafka\n", "is not TOML"),
    ],
)
def test_wrong_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    monkeypatch.setenv("IMAGEWARDEN_CONFIG", str(file))
    with pytest.raises(Misconfigured, match=sentence.replace("?", r"\?")):
        load_settings()


def test_secrets_do_not_show() -> None:
    settings = load_settings(
        {"redis": {"url": "redis://:hunter2@host/0"}, "cache": {"url_key": "hunter2" * 3}}
    )
    assert "hunter2" not in repr(settings)


def test_every_setting_has_one_variable() -> None:
    names = list(variables())
    assert len(names) == len(set(names))
    assert "IMAGEWARDEN_REDIS__URL" in names
