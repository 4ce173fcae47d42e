"""`imagewarden topics create`, on real brokers."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka import KafkaAdminClient
from typer.testing import CliRunner, Result

from worker.cli import cli
from worker.commands.render import Exit
from worker.topic_admin import topic_admin
from worker.topic_plan import Existing, Names, Needs, plan_topics

KINDS = ("requests", "retries", "verdicts", "dead_letters", "embeddings", "feedback")
DAY_MS = 86_400_000


class Cluster:
    """A broker, with topics of our own on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        mark = uuid.uuid4().hex
        self.names = {kind: f"{kind}.{mark}" for kind in KINDS}

    @property
    def environment(self) -> dict[str, str]:
        return {
            "IMAGEWARDEN_KAFKA__BOOTSTRAP": self.address,
            **{f"IMAGEWARDEN_KAFKA__{kind}_TOPIC".upper(): self.names[kind] for kind in self.names},
        }

    def create(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["topics", "create", *arguments], env=self.environment)

    def described(self) -> dict[str, Existing]:
        """By kind, those that exist."""
        with topic_admin(self.address, client_id="tests") as admin:
            found, refused = admin.describe(list(self.names.values()))
        assert not refused
        kinds = {name: kind for kind, name in self.names.items()}
        return {kinds[name]: existing for name, existing in found.items()}


@pytest.fixture
def cluster(broker_address: str) -> Cluster:
    return Cluster(broker_address)


@pytest.fixture
def apache(apache_address: str) -> Cluster:
    return Cluster(apache_address)


def lines(done: Result) -> dict[str, Any]:
    """What was said of each topic."""
    told = map(json.loads, done.stdout.splitlines())
    return {line["topic"].partition(".")[0]: line for line in told}


def test_all_that_workers_read_and_write_is_created(cluster: Cluster) -> None:
    done = cluster.create("--partitions", "3")
    assert done.exit_code == Exit.ALL_ALLOWED
    assert {kind: line["state"] for kind, line in lines(done).items()} == dict.fromkeys(
        KINDS, "created"
    )
    assert {kind: each.partitions for kind, each in cluster.described().items()} == dict.fromkeys(
        KINDS, 3
    )


def test_a_dry_run_creates_nothing(cluster: Cluster) -> None:
    done = cluster.create("--dry-run")
    assert done.exit_code == Exit.ALL_ALLOWED
    assert {line["state"] for line in lines(done).values()} == {"missing"}
    assert cluster.described() == {}


def test_creating_again_changes_nothing_and_finds_nothing_wrong(cluster: Cluster) -> None:
    cluster.create("--partitions", "3")
    before = cluster.described()
    done = cluster.create("--partitions", "3")
    assert done.exit_code == Exit.ALL_ALLOWED
    assert cluster.described() == before
    assert not any(line["wrong"] for line in lines(done).values())


def test_a_topic_with_too_few_partitions_is_told_of_and_left_as_it_is(cluster: Cluster) -> None:
    cluster.create("--partitions", "2")
    done = cluster.create("--partitions", "5")
    assert done.exit_code == Exit.NOT_ALL_ALLOWED
    [sentence] = lines(done)["requests"]["wrong"]
    assert "has 2 partitions, not 5" in sentence
    assert {each.partitions for each in cluster.described().values()} == {2}


def test_several_that_create_at_once_are_all_content(cluster: Cluster) -> None:
    names = cluster.names
    needs = Needs(3, 1, 30, 7, 30, 1_000_000, 2**20)
    topics = plan_topics(Names(**{kind: names[kind] for kind in KINDS}), needs)

    def create(number: int) -> dict[str, str | None]:
        with topic_admin(cluster.address, client_id=f"tests-{number}") as admin:
            return admin.create(topics)

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(create, range(3)))
    created = [name for outcome in outcomes for name in outcome]
    assert sorted(created) == sorted(names.values())
    assert {why for outcome in outcomes for why in outcome.values()} == {None}


def test_topics_are_kept_and_cleaned_up_as_they_are_used(apache: Cluster) -> None:
    apache.create("--look-back-days", "10", "--wait-days", "2")
    configs = {kind: each.configs or {} for kind, each in apache.described().items()}
    assert {kind: int(each["retention.ms"]) / DAY_MS for kind, each in configs.items()} == {
        "requests": 2,
        "retries": 2,
        "verdicts": 10,
        "dead_letters": 10,
        "embeddings": 40,  # and the cache's thirty
        "feedback": 10,
    }
    compacted = {kind for kind, each in configs.items() if "compact" in each["cleanup.policy"]}
    assert compacted == {"embeddings"}
    largest = {kind: int(each["max.message.bytes"]) for kind, each in configs.items()}
    assert largest["dead_letters"] > largest["requests"] > 1_000_000


def test_a_topic_that_differs_is_told_of_with_what_to_do_and_left_as_it_is(apache: Cluster) -> None:
    name = apache.names["requests"]
    admin = KafkaAdminClient(bootstrap_servers=apache.address)
    configs = {"cleanup.policy": "compact", "max.message.bytes": "1000"}
    admin.create_topics({name: {"num_partitions": 12, "configs": configs}}, wait_for_metadata=True)
    admin.close()
    before = apache.described()
    done = apache.create()
    assert done.exit_code == Exit.NOT_ALL_ALLOWED
    told = lines(done)
    assert told["requests"]["state"] == "differs"
    compacted, small = sorted(told["requests"]["wrong"])
    assert "cleanup.policy=compact, not delete" in compacted
    assert "max.message.bytes=1000, not 1016384" in small
    assert apache.described()["requests"] == before["requests"]
    assert {told[kind]["state"] for kind in KINDS if kind != "requests"} == {"created"}


def test_what_brokers_refuse_is_a_sentence_for_each_topic(apache: Cluster) -> None:
    done = apache.create("--replicas", "9")
    assert done.exit_code == Exit.NOT_ALL_ALLOWED
    for line in lines(done).values():
        assert line["state"] == "refused"
        [sentence] = line["wrong"]
        assert "was not created" in sentence
        assert "9" in sentence


def test_a_name_that_no_topic_can_have_is_a_sentence(apache: Cluster) -> None:
    apache.names["requests"] = f"requests. {uuid.uuid4().hex}"
    done = apache.create()
    assert done.exit_code == Exit.NOT_ALL_ALLOWED
    [sentence] = lines(done)["requests"]["wrong"]
    assert "letters, digits" in sentence


def test_what_differs_stands_below_the_table(cluster: Cluster) -> None:
    cluster.create("--partitions", "2")
    done = cluster.create("--partitions", "5", "--format", "table")
    assert f"{cluster.names['requests']} has 2 partitions, not 5: no more workers" in done.stdout


def test_an_absent_broker_is_a_sentence_and_exit_code_3() -> None:
    done = Cluster("127.0.0.1:1").create()
    assert done.exit_code == Exit.NOT_EXAMINED
    assert done.stderr.startswith("imagewarden: no Kafka broker answers at 127.0.0.1:1")
