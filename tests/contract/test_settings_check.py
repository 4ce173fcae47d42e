"""`imagewarden settings check`, on real servers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
)
from typer.testing import CliRunner

from tests.apache_kafka import apache_kafka, unavailable
from worker.cli import cli
from worker.commands.service_checks import kafka_problems, redis_problems
from worker.settings import Settings
from worker.settings_load import load_settings

PASSWORD = "hunter2/hunter2"
ESCAPED = "hunter2%2Fhunter2"
TOPICS = ("requests", "retries", "verdicts", "dead_letters", "embeddings", "feedback")


# ------------------------------------------------------------------------------------- Kafka


def named(address: str, **kafka: Any) -> Settings:
    """Settings with topics of our own."""
    mark = uuid.uuid4().hex
    names = {f"{kind}_topic": f"{kind}.{mark}" for kind in TOPICS}
    return load_settings({"kafka": {"bootstrap": [address], "group": mark, **names, **kafka}})


def created(settings: Settings) -> None:
    kafka = settings.kafka
    environment = {
        "IMAGEWARDEN_KAFKA__BOOTSTRAP": ",".join(kafka.bootstrap),
        **{
            f"IMAGEWARDEN_KAFKA__{kind}_TOPIC".upper(): getattr(kafka, f"{kind}_topic")
            for kind in TOPICS
        },
    }
    done = CliRunner().invoke(cli, ["topics", "create", "--partitions", "1"], env=environment)
    assert done.exit_code == 0, done.stdout


def test_topics_that_are_not_there_are_told_of_with_the_command_that_creates_them(
    broker_address: str,
) -> None:
    settings = named(broker_address)
    said = list(kafka_problems(settings))
    assert len(said) == 5  # feedback is no worker's
    for sentence in said:
        assert "run `imagewarden topics create`" in sentence


def test_with_its_topics_created_nothing_is_wrong_with_kafka(broker_address: str) -> None:
    settings = named(broker_address)
    created(settings)
    assert list(kafka_problems(settings)) == []


def test_a_topic_that_takes_less_than_the_settings_say_is_told_of(apache_address: str) -> None:
    settings = named(apache_address)
    created(settings)
    larger = {"request_max_bytes": 5_000_000, "message_max_bytes": 6_000_000}
    kafka = settings.kafka.model_copy(update=larger)
    said = list(kafka_problems(settings.model_copy(update={"kafka": kafka})))
    assert len(said) == 5
    assert all("max.message.bytes=" in sentence for sentence in said)


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A broker where everybody may do what no ACL speaks of."""
    if why := unavailable():
        pytest.skip(why)
    authorizer = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with apache_kafka(properties=authorizer) as cluster:
        yield cluster.bootstrap


def until_in_force(admin: KafkaAdminClient, pattern: ResourcePattern, rules: int) -> None:
    """The controller has taken them; the broker hears of them in a moment."""
    any_of = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, pattern)
    deadline = time.monotonic() + 30
    while len(admin.describe_acls(any_of)[0]) < rules:
        assert time.monotonic() < deadline, "the rules are not in force"
        time.sleep(0.02)


@contextmanager
def denied(address: str, kind: ResourceType, name: str, operation: ACLOperation) -> Iterator[None]:
    """Everybody else is allowed all the same."""
    pattern = ResourcePattern(kind, name)
    rules = [
        ACL("User:ANONYMOUS", "*", operation, ACLPermissionType.DENY, pattern),
        ACL("User:*", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, pattern),
    ]
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        told = admin.create_acls(rules)
        assert not told["failed"]
        until_in_force(admin, pattern, len(rules))
        yield
        admin.delete_acls(rules)
    finally:
        admin.close()


def test_a_topic_that_this_login_may_not_write_is_told_of(guarded: str) -> None:
    settings = named(guarded)
    created(settings)
    topic = settings.kafka.verdicts_topic
    with denied(guarded, ResourceType.TOPIC, topic, ACLOperation.WRITE):
        [said] = kafka_problems(settings)
    assert said == f"this login may not WRITE {topic}; give it an ACL for it"


def test_a_topic_that_this_login_may_not_see_is_told_of(guarded: str) -> None:
    settings = named(guarded)
    created(settings)
    topic = settings.kafka.requests_topic
    with denied(guarded, ResourceType.TOPIC, topic, ACLOperation.ALL):
        [said] = kafka_problems(settings)
    assert said.startswith(f"the topic {topic} cannot be seen: this login may not")


def test_a_group_that_this_login_may_not_join_is_told_of(guarded: str) -> None:
    settings = named(guarded)
    created(settings)
    group = f"{settings.kafka.group}.retries"
    with denied(guarded, ResourceType.GROUP, group, ACLOperation.READ):
        [said] = kafka_problems(settings)
    assert said == f"this login may not READ the group {group}; give it an ACL for it"


def test_topics_that_this_login_may_not_create_are_told_of(guarded: str) -> None:
    topic = f"requests.{uuid.uuid4().hex}"
    environment = {
        "IMAGEWARDEN_KAFKA__BOOTSTRAP": guarded,
        "IMAGEWARDEN_KAFKA__REQUESTS_TOPIC": topic,
    }
    with denied(guarded, ResourceType.TOPIC, topic, ACLOperation.ALL):
        done = CliRunner().invoke(cli, ["topics", "create"], env=environment)
    assert done.exit_code == 1
    assert "this login may not" in done.stdout


# ------------------------------------------------------------------------------------- Redis


def with_redis(url: str, **redis: Any) -> Settings:
    return load_settings({"redis": {"url": url, "timeout_seconds": 30, **redis}})


@contextmanager
def configured(url: str, **settings: str | int) -> Iterator[None]:
    with redis.Redis.from_url(url) as client:
        before = {name: client.config_get(name)[name] for name in settings}
        for name, value in settings.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def user(url: str, *, keys: str = "*", categories: str = "+@all") -> str:
    """The URL of a new user with ``PASSWORD``."""
    name = f"user-{uuid.uuid4().hex}"
    with redis.Redis.from_url(url) as client:
        client.acl_setuser(
            name, enabled=True, passwords=[f"+{PASSWORD}"], keys=[keys], categories=[categories]
        )
    return url.replace("redis://", f"redis://{name}:{ESCAPED}@")


def test_a_redis_that_answers_and_evicts_is_well(redis_url: str) -> None:
    assert list(redis_problems(with_redis(user(redis_url)))) == []


def test_a_wrong_password_is_a_sentence_that_does_not_say_it(redis_url: str) -> None:
    wrong = user(redis_url).replace(ESCAPED, f"not-{ESCAPED}")
    [said] = redis_problems(with_redis(wrong))
    assert "refuses our login" in said
    assert "hunter2" not in said


def test_no_password_where_one_is_wanted_is_a_sentence(redis_url: str) -> None:
    with configured(redis_url, requirepass="hunter2hunter2") as _:
        said = list(redis_problems(with_redis(redis_url)))
        with redis.Redis.from_url(redis_url, password="hunter2hunter2") as client:
            client.config_set("requirepass", "")
    assert len(said) == 1
    assert "Authentication required" in said[0]


def test_a_redis_that_evicts_nothing_is_told_of(redis_url: str) -> None:
    with configured(redis_url, **{"maxmemory-policy": "noeviction"}):
        [said] = redis_problems(with_redis(redis_url))
    assert "set it to allkeys-lru" in said


def test_a_redis_without_a_bound_is_told_of(redis_url: str) -> None:
    with configured(redis_url, maxmemory=0):
        [said] = redis_problems(with_redis(redis_url))
    assert "has no maxmemory" in said


def test_a_user_that_may_not_use_our_keys_is_told_of(redis_url: str) -> None:
    [said] = redis_problems(with_redis(user(redis_url, keys="others:*")))
    assert "may not use the keys imagewarden:*" in said


def test_a_redis_slower_than_the_limit_is_told_of(redis_url: str) -> None:
    [said] = redis_problems(with_redis(redis_url, timeout_seconds=1e-9))
    assert "so every look-up is a miss" in said


def test_the_key_that_is_tried_is_gone_soon(redis_url: str) -> None:
    prefix = f"{uuid.uuid4().hex}:"
    assert list(redis_problems(with_redis(redis_url, prefix=prefix))) == []
    with redis.Redis.from_url(redis_url) as client:
        left = {key: client.pttl(key) for key in client.scan_iter(f"{prefix}*")}
    assert all(milliseconds <= 1000 and milliseconds != -1 for milliseconds in left.values())
