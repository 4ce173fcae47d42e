"""What topics should be, and what is said of those that are otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import Misconfigured
from worker.settings import Settings
from worker.topic_plan import Existing, Names, Needs, Topic, differences, plan_topics

NAMES = Names("requests", "verdicts", "dead", "embeddings", "feedback", "retries", "backfill")
NEEDS = Needs(
    partitions=12,
    replicas=3,
    look_back_days=30,
    wait_days=7,
    cached_days=30,
    request_max_bytes=1_000_000,
    message_max_bytes=2**20,
)
DAY_MS = 86_400_000


def topics(**needs: Any) -> dict[str, Topic]:
    planned = plan_topics(NAMES, dataclasses.replace(NEEDS, **needs))
    return {topic.name: topic for topic in planned}


def as_planned(topic: Topic, **configs: str) -> Existing:
    return Existing(topic.partitions, topic.replicas, {**topic.configs, **configs})


def sentences(name: str, **configs: str) -> list[str]:
    """Of what is wrong with a topic that is as planned, but for ``configs``."""
    topic = topics()[name]
    written = {config.replace("_", "."): value for config, value in configs.items()}
    return list(differences(topic, as_planned(topic, **written)))


needs = st.builds(
    Needs,
    partitions=st.integers(1, 1000),
    replicas=st.integers(1, 9),
    look_back_days=st.floats(0.01, 4000),
    wait_days=st.floats(0.01, 4000),
    cached_days=st.floats(0, 400),
    request_max_bytes=st.integers(1, 2**28),
    message_max_bytes=st.just(2**29),
)


@given(needs, st.integers(0, 5), st.integers(0, 3), st.integers(0, 10**9))
def test_a_topic_as_it_was_planned_or_with_more_of_everything_is_as_it_should_be(
    needs: Needs, partitions: int, replicas: int, more: int
) -> None:
    for topic in plan_topics(NAMES, needs):
        configs = dict(topic.configs)
        for config in ("retention.ms", "max.message.bytes"):
            if config in configs:
                configs[config] = str(int(configs[config]) + more)
        if topic.replicas + replicas > 2:
            configs["min.insync.replicas"] = "2"
        found = Existing(topic.partitions + partitions, topic.replicas + replicas, configs)
        assert list(differences(topic, found)) == []


@given(needs)
def test_a_topic_with_less_of_anything_is_told_of_by_what_it_has_less_of(needs: Needs) -> None:
    for topic in plan_topics(NAMES, needs):
        for config in ("retention.ms", "max.message.bytes"):
            if config in topic.configs:
                less = str(int(topic.configs[config]) - 1)
                [sentence] = differences(topic, as_planned(topic, **{config: less}))
                assert sentence.startswith(f"{topic.name} has {config}={less}")
                assert f"set it to {topic.configs[config]} or more" in sentence
        found = as_planned(topic)
        [sentence] = differences(topic, dataclasses.replace(found, partitions=topic.partitions - 1))
        assert f"{topic.partitions - 1} partitions, not {topic.partitions}" in sentence


def test_dead_letters_take_more_than_requests_do() -> None:
    planned = topics()
    largest = {
        name: int(planned[name].configs["max.message.bytes"]) for name in ("requests", "dead")
    }
    assert NEEDS.request_max_bytes < largest["requests"] < largest["dead"]


def test_dead_letters_that_could_not_hold_the_largest_request_are_refused() -> None:
    with pytest.raises(Misconfigured, match=r"MESSAGE_MAX_BYTES is too small .* set it to 5024576"):
        topics(request_max_bytes=5_000_000)


def test_the_sizes_that_settings_have_by_themselves_go_together() -> None:
    kafka = Settings().kafka
    topics(request_max_bytes=kafka.request_max_bytes, message_max_bytes=kafka.message_max_bytes)


def test_embeddings_are_kept_as_much_longer_than_verdicts_as_they_are_cached() -> None:
    planned = topics(look_back_days=10, cached_days=4)
    assert planned["verdicts"].configs["retention.ms"] == str(10 * DAY_MS)
    assert planned["embeddings"].configs["retention.ms"] == str(14 * DAY_MS)
    assert planned["embeddings"].configs["cleanup.policy"] == "compact,delete"


def test_what_is_kept_for_ever_is_kept_for_long_enough() -> None:
    assert sentences("verdicts", retention_ms="-1") == []


def test_a_limit_on_bytes_is_told_of_whatever_it_is() -> None:
    [sentence] = sentences("requests", retention_bytes="1000000000000")
    assert "before their time" in sentence
    assert sentence.endswith("set it to -1")


@pytest.mark.parametrize(
    ("name", "policy", "means"),
    [
        ("requests", "compact", "a request is gone, unread, where its item has a later one"),
        ("verdicts", "compact,delete", "only the last one stays"),
        ("dead", "compact", "brokers refuse dead letters without a key"),
        ("embeddings", "delete", "without compact, every repeat of an embedding is kept"),
        ("embeddings", "compact", "without delete, each is kept for ever"),
    ],
)
def test_another_cleanup_is_told_of_with_what_it_means(name: str, policy: str, means: str) -> None:
    [sentence] = sentences(name, cleanup_policy=policy)
    assert means in sentence


def test_the_order_in_which_a_cleanup_is_written_means_nothing() -> None:
    assert sentences("embeddings", cleanup_policy="delete, compact") == []


@pytest.mark.parametrize(("in_sync", "better"), [("3", "2"), ("4", "2")])
def test_a_topic_that_takes_nothing_with_a_broker_away_is_told_of(
    in_sync: str, better: str
) -> None:
    [sentence] = sentences("verdicts", min_insync_replicas=in_sync)
    assert "nothing can be published to it while one broker is away" in sentence
    assert sentence.endswith(f"set it to {better}")


def test_of_a_topic_with_one_replica_only_the_replicas_are_told_of() -> None:
    """Two in sync would stop it."""
    topic = topics()["verdicts"]
    found = Existing(topic.partitions, 1, {**topic.configs, "min.insync.replicas": "1"})
    [sentence] = differences(topic, found)
    assert "has 1 of each partition, not 3" in sentence


def test_where_brokers_do_not_tell_settings_partitions_and_replicas_are_compared() -> None:
    topic = topics()["requests"]
    assert list(differences(topic, Existing(topic.partitions, topic.replicas))) == []
    assert len(list(differences(topic, Existing(1, 1)))) == 2


def test_two_topics_of_one_name_are_refused() -> None:
    names = dataclasses.replace(NAMES, retries="requests")
    with pytest.raises(Misconfigured, match="requests is the name of several topics"):
        plan_topics(names, NEEDS)


def test_topics_that_the_settings_do_without_are_not_planned() -> None:
    names = dataclasses.replace(NAMES, retries=None, backfill=None)
    planned = {topic.name for topic in plan_topics(names, NEEDS)}
    assert planned == {"requests", "verdicts", "dead", "embeddings", "feedback"}
