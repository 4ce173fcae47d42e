"""TLS and SASL, against the only broker that has them: Apache Kafka."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from tests.apache_kafka import KafkaCluster, _free_ports, _take_jars, unavailable
from tests.certificates import Authority
from tests.e2e.scene import command
from worker.errors import Misconfigured
from worker.kafka_security import KafkaSecurity
from worker.publish import KafkaPublisher
from worker.source import KafkaSource
from worker.topics import TopicReader, ensure_topics
from worker.types import Message

PASSWORD = "hunter2hunter2"
KEY_PASSWORD = "hunter2hunter2-of-the-key"
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class SecureKafka:
    """``login`` wants SASL over TLS, ``mutual`` a client's certificate; ``open`` nothing."""

    open: str
    login: str
    mutual: str
    ours: Authority
    folder: Path

    def security(self, **settings: Any) -> KafkaSecurity:
        return KafkaSecurity(
            **{
                "protocol": "SASL_SSL",
                "ca_file": self.ours.certificate,
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_username": "worker",
                "sasl_password": PASSWORD,
                **settings,
            }
        )


@pytest.fixture(scope="module")
def kafka() -> Iterator[SecureKafka]:
    if why := unavailable():
        pytest.skip(why)
    _take_jars()
    with TemporaryDirectory(prefix="secure-kafka-") as made:
        folder = Path(made)
        ours = Authority(folder, "ours")
        server = ours.signed("broker")
        login, mutual = _free_ports(2)
        cluster = KafkaCluster(folder, 1, properties(server, ours.certificate))
        file = folder / "broker-0.properties"
        told = file.read_text()
        [listeners] = [line for line in told.splitlines() if line.startswith("listeners=")]
        more = f"{listeners},LOGIN://127.0.0.1:{login},MUTUAL://127.0.0.1:{mutual}"
        file.write_text(told.replace(listeners, more))
        try:
            cluster._open()
            add_user(cluster.bootstrap)
            yield SecureKafka(
                open=cluster.bootstrap,
                login=f"127.0.0.1:{login}",
                mutual=f"127.0.0.1:{mutual}",
                ours=ours,
                folder=folder,
            )
        finally:
            cluster._close()


def properties(server: Path, authority: Path) -> dict[str, str]:
    modules = "org.apache.kafka.common.security"
    login = "listener.name.login"
    return {
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_SSL,MUTUAL:SSL"
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority),
        "listener.name.mutual.ssl.client.auth": "required",
        f"{login}.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        f"{login}.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        f"{login}.plain.sasl.jaas.config": (
            f'{modules}.plain.PlainLoginModule required user_worker="{PASSWORD}";'
        ),
    }


def add_user(bootstrap: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        told = admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion("worker", ScramMechanism.SCRAM_SHA_512, PASSWORD)]
        )
        assert told == {"worker": None}
    finally:
        admin.close()


async def goes_through(bootstrap: str, security: KafkaSecurity) -> bytes | None:
    """What is consumed of a message that was published."""
    options = security.options()
    topic = f"topic-{uuid.uuid4().hex}"
    await ensure_topics(bootstrap, {topic: 1}, options=options)
    publisher = KafkaPublisher(bootstrap=bootstrap, client_id="tests", options=options)
    source = KafkaSource(
        bootstrap=bootstrap, topics=[topic], group=topic, client_id="tests", options=options
    )
    try:
        await publisher.start()
        await publisher.publish(Message(topic, b"key", b"value"))
        await source.start(drain=nothing_in_flight, forget=lambda partitions: None)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (records := await source.poll(1)):
                pass
    finally:
        await source.close()
        await publisher.close()
    async with TopicReader(
        bootstrap=bootstrap, topic=topic, client_id="tests", options=options
    ) as reader:
        assert [record.value async for record in reader.read_all()] == [records[0].value]
    return records[0].value


async def nothing_in_flight(partitions: object) -> dict[Any, Any]:
    return {}


async def refusal(bootstrap: str, security: KafkaSecurity) -> str:
    publisher = KafkaPublisher(bootstrap=bootstrap, client_id="tests", options=security.options())
    try:
        with pytest.raises(Misconfigured) as refused:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await publisher.start()
    finally:
        await publisher.close()
    return str(refused.value)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_a_message_goes_through_after_a_login_over_tls(
    kafka: SecureKafka, mechanism: str
) -> None:
    security = kafka.security(sasl_mechanism=mechanism)
    assert await goes_through(kafka.login, security) == b"value"


@pytest.mark.parametrize("password", ["", KEY_PASSWORD])
async def test_a_message_goes_through_with_a_certificate_of_the_client(
    kafka: SecureKafka, password: str
) -> None:
    client = kafka.ours.signed(f"client-{len(password)}", password=password)
    security = KafkaSecurity(
        protocol="SSL",
        ca_file=kafka.ours.certificate,
        cert_file=client,
        key_password=password or None,
    )
    assert await goes_through(kafka.mutual, security) == b"value"


@pytest.mark.parametrize(
    "wrong",
    [
        {"sasl_password": PASSWORD + "x"},
        {"sasl_username": "nobody"},
        {"sasl_mechanism": "PLAIN", "sasl_password": PASSWORD + "x"},
        {"sasl_mechanism": "SCRAM-SHA-256"},
    ],
)
async def test_a_wrong_login_is_told_of_and_not_tried_for_ever(
    kafka: SecureKafka, wrong: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    told = await refusal(kafka.login, kafka.security(**wrong))
    assert "refuse our login" in told
    assert caplog.records  # of kafka-python's, which has its own way of telling
    assert PASSWORD not in told + caplog.text


async def test_a_broker_with_a_certificate_of_another_authority_is_refused(
    kafka: SecureKafka,
) -> None:
    other = Authority(kafka.folder, "other")
    told = await refusal(kafka.login, kafka.security(ca_file=other.certificate))
    assert "we refuse the brokers' certificate" in told
    assert "IMAGEWARDEN_KAFKA_SECURITY__CA_FILE" in told


async def test_a_broker_that_wants_a_certificate_of_ours_is_told_of(kafka: SecureKafka) -> None:
    security = KafkaSecurity(protocol="SSL", ca_file=kafka.ours.certificate)
    assert "CERT_FILE" in await refusal(kafka.mutual, security)


async def test_a_listener_of_another_protocol_is_told_of_at_each_attempt(
    kafka: SecureKafka,
) -> None:
    """It looks like a broker that is just starting, so it is tried again."""
    tls_to_plain = (kafka.open, KafkaSecurity(protocol="SSL", ca_file=kafka.ours.certificate))
    plain_to_tls = (kafka.login, KafkaSecurity())
    for bootstrap, security in (tls_to_plain, plain_to_tls):
        with structlog.testing.capture_logs() as logs:
            publisher = KafkaPublisher(
                bootstrap=bootstrap, client_id="tests", options=security.options()
            )
            starting = asyncio.create_task(publisher.start())
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not logs:
                    await asyncio.sleep(0.05)
            starting.cancel()
            await asyncio.wait({starting})
            await publisher.close()
        assert logs[0]["event"] == "broker_unreachable"
        assert "IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL" in logs[0]["remedy"]


def test_a_command_ends_with_the_sentence_and_code_2(kafka: SecureKafka) -> None:
    done = command(
        *("publish", "http://127.0.0.1/image.jpg"),
        settings={
            "KAFKA__BOOTSTRAP": kafka.login,
            "KAFKA_SECURITY__PROTOCOL": "SASL_SSL",
            "KAFKA_SECURITY__CA_FILE": str(kafka.ours.certificate),
            "KAFKA_SECURITY__SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SECURITY__SASL_USERNAME": "worker",
            "KAFKA_SECURITY__SASL_PASSWORD": PASSWORD + "x",
        },
    )
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("imagewarden: the brokers refuse our login")
    assert PASSWORD not in done.stderr + done.stdout
