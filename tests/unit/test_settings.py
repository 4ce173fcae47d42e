from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import Misconfigured
from worker.settings_load import load_settings, variables


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
        ("IMAGEWARDEN_KAFKA__COMPRESSION", "br", "'none', 'gzip', 'lz4', 'snappy' or 'zstd'"),
        ("IMAGEWARDEN_KAFKA__LINGER_SECONDS", "-1", "greater than or equal to 0"),
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


SECRETS = {
    "redis": {"url": "redis://:hunter2@host/0"},
    "cache": {"url_key": "hunter2" * 3},
    "kafka_security": {
        "protocol": "SASL_SSL",
        "cert_file": __file__,
        "key_password": "hunter2",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "worker",
        "sasl_password": "hunter2",
    },
}


def test_secrets_do_not_show() -> None:
    settings = load_settings(SECRETS)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hunter2" not in shown
    assert settings.kafka_security.sasl_password is not None
    assert settings.kafka_security.sasl_password.get_secret_value() == "hunter2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"redis": {"url": "http://:hunter2@host"}},
        {"redis": {"url": "redis://:hunter2/x@host"}},
        {"redis": {"url": ["hunter2"]}},
        {"cache": {"url_key": "hunter2"}},
        {"kafka_security": {"sasl_password": "hunter2"}},
        {"kafka_security": {"sasl_password": ["hunter2"]}},
        {"kafka_security": {"protocol": "SSL", "key_password": "hunter2"}},
        {"kafka_security": {"protocol": "SSL", "sasl_password": "hunter2"}},
    ],
)
def test_secrets_do_not_show_in_the_sentence_that_refuses_them(wrong: dict[str, object]) -> None:
    with pytest.raises(Misconfigured) as refused:
        load_settings(wrong)
    assert "hunter2" not in f"{refused.value!r} {refused.value.__context__ or ''}"


@pytest.mark.parametrize(
    ("security", "sentence"),
    [
        ({"protocol": "tls"}, "'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        (
            {"protocol": "sasl_ssl", "sasl_username": "worker"},
            "with PROTOCOL SASL_SSL, set SASL_MECHANISM, SASL_PASSWORD",
        ),
        ({"sasl_username": "worker"}, "with PROTOCOL PLAINTEXT, nothing uses SASL_USERNAME"),
        (
            {"protocol": "SSL", "sasl_username": "worker"},
            "with PROTOCOL SSL, nothing uses SASL_USERNAME",
        ),
        (
            {
                "protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_username": "worker",
                "sasl_password": "x",
                "ca_file": __file__,
            },
            "with PROTOCOL SASL_PLAINTEXT, nothing uses CA_FILE",
        ),
        ({"protocol": "SSL", "key_file": __file__}, "CERT_FILE"),
        ({"protocol": "SSL", "ca_file": "/nowhere.pem"}, "IMAGEWARDEN_KAFKA_SECURITY__CA_FILE"),
    ],
)
def test_security_settings_that_do_not_go_together_are_refused(
    security: dict[str, str], sentence: str
) -> None:
    with pytest.raises(Misconfigured) as refused:
        load_settings({"kafka_security": security})
    assert sentence in str(refused.value)


@pytest.mark.parametrize("setting", ["ca_file", "cert_file"])
def test_a_file_that_is_no_certificate_is_refused_by_its_setting(setting: str) -> None:
    security = load_settings({"kafka_security": {"protocol": "SSL", setting: __file__}})
    with pytest.raises(Misconfigured, match=f"IMAGEWARDEN_KAFKA_SECURITY__{setting.upper()}"):
        security.kafka_security.options()


def test_without_security_settings_kafka_is_spoken_to_in_plain() -> None:
    assert load_settings().kafka_security.options() == {"security_protocol": "PLAINTEXT"}


def test_every_setting_has_one_variable() -> None:
    names = list(variables())
    assert len(names) == len(set(names))
    assert "IMAGEWARDEN_REDIS__URL" in names
