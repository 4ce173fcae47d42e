"""What the brokers say of topics and consumer groups. Blocking: call it from a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

_END_SECONDS = 20.0  # for reading what is left of a topic


class Membership(NamedTuple):
    """``owned`` counts the partitions that have an owner."""

    state: str
    owned: int


def membership(bootstrap: str, group: str) -> Membership:
    with _admin(bootstrap) as admin:
        told = admin.describe_groups([group])[group]
    owned = {
        (topic["topic"], partition)
        for member in told["members"]
        if member["member_assignment"]
        for topic in member["member_assignment"]["assigned_partitions"]
        for partition in topic["partitions"]
    }
    return Membership(told["group_state"], len(owned))


def committed(bootstrap: str, group: str, topic: str) -> Mapping[int, int]:
    """By partition, where anything was committed."""
    with _admin(bootstrap) as admin:
        offsets = admin.list_group_offsets(group)[group]
    return {
        partition.partition: at.offset
        for partition, at in offsets.items()
        if partition.topic == topic and at.offset >= 0
    }


def unread(bootstrap: str, group: str, topic: str) -> Mapping[int, int]:
    """By partition, how many records lie behind what is committed that a reader of committed data
    can see: ends of transactions are no records.

    Raises ``TimeoutError`` where the end cannot be reached, as while a transaction is open.
    """
    known = committed(bootstrap, group, topic)
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False
    )
    try:
        partitions = [
            TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
        ]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, known.get(partition.partition, 0))
        counts = dict.fromkeys((partition.partition for partition in partitions), 0)
        give_up_at = time.monotonic() + _END_SECONDS
        while any(consumer.position(each) < ends[each] for each in partitions):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the end of {topic} cannot be read: is a transaction open?")
            for partition, records in consumer.poll(timeout_ms=100).items():
                counts[partition.partition] += len(records)
        return counts
    finally:
        consumer.close()


def in_sync(bootstrap: str) -> bool:
    """Whether all replicas of all partitions are, so that any one broker may be killed."""
    with _admin(bootstrap) as admin:
        topics = admin.describe_topics()
    partitions = [partition for topic in topics for partition in topic["partitions"]]
    return bool(partitions) and all(
        len(partition["isr_nodes"]) == len(partition["replica_nodes"])
        and partition["leader_id"] >= 0
        for partition in partitions
    )


@contextmanager
def _admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        yield admin
    finally:
        admin.close()
