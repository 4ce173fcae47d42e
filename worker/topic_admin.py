"""What brokers say of topics and groups, and the creating of topics that are missing. Blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    RetriableError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from worker.broker import Options, open_client, servers
from worker.topic_plan import Existing, Topic

log = structlog.get_logger(__name__)

_ANSWER_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_NOBODY = "imagewarden settings check"


@contextmanager
def topic_admin(
    bootstrap: str | Sequence[str], *, client_id: str, options: Options | None = None
) -> Iterator[TopicAdmin]:
    """Raises ``ConnectionError`` when no broker answers, also where one stops answering meanwhile,
    and ``Misconfigured`` where brokers and we refuse each other."""
    addresses = servers(bootstrap)
    try:
        admin, _ = open_client(
            KafkaAdminClient,
            bootstrap_servers=addresses,
            client_id=client_id,
            request_timeout_ms=int(_ANSWER_SECONDS * 1000),
            **(options or {}),
        )
    except KafkaTimeoutError as error:
        raise ConnectionError(
            f"no Kafka broker answers at {addresses}; check the address, that the broker is up, "
            "and IMAGEWARDEN_KAFKA_SECURITY__PROTOCOL"
        ) from error
    try:
        yield TopicAdmin(admin)
    except KafkaError as error:
        raise ConnectionError(f"the Kafka brokers at {addresses} failed: {error}") from error
    finally:
        admin.close()


class TopicAdmin:
    def __init__(self, admin: Any) -> None:
        self._admin = admin

    def brokers(self) -> int:
        """How many are up."""
        members = self._admin.describe_cluster()["brokers"]
        return sum(not member.get("is_fenced") for member in members)

    def describe(self, names: Sequence[str]) -> tuple[dict[str, Existing], dict[str, str]]:
        """Those that exist, and why we are told nothing of others; what is in neither is missing.

        ``configs`` are told by brokers that answer it and let this login see them.
        """
        found: dict[str, Existing] = {}
        refused: dict[str, str] = {}
        for told in self._admin.describe_topics(list(names)):
            name, error = told["name"], for_code(told["error_code"])
            if error is UnknownTopicOrPartitionError:
                continue
            if told["error_code"] != 0:
                refused[name] = _refusal(error, f"the topic {name} cannot be seen")
                continue
            operations = told.get("authorized_operations")
            found[name] = Existing(
                partitions=len(told["partitions"]),
                replicas=min(len(each["replica_nodes"]) for each in told["partitions"]),
                operations=None if operations is None else frozenset(operations),
            )
        configs = self._configs(list(found))
        return {
            name: Existing(each.partitions, each.replicas, configs.get(name), each.operations)
            for name, each in found.items()
        }, refused

    def create(self, topics: Sequence[Topic]) -> dict[str, str | None]:
        """What came of each: None where it was created, else why it was not. One that somebody
        else created meanwhile is left out."""
        if not topics:
            return {}
        told = self._admin.create_topics(
            {
                topic.name: {
                    "num_partitions": topic.partitions,
                    "replication_factor": topic.replicas,
                    "configs": dict(topic.configs),
                }
                for topic in topics
            },
            raise_errors=False,
        )
        outcome: dict[str, str | None] = {}
        for each in told["topics"]:
            name, error = each["name"], for_code(each["error_code"])
            if error is TopicAlreadyExistsError:
                continue
            outcome[name] = (
                _refusal(error, f"the topic {name} was not created", each.get("error_message"))
                if each["error_code"]
                else None
            )
        self._admin.wait_for_topics([name for name, why in outcome.items() if why is None])
        return outcome

    def group_problems(self, groups: Sequence[str]) -> Iterator[str]:
        """A sentence for each consumer group that this login may not be a member of."""
        for group in groups:
            try:
                self._leave(group)
            except GroupAuthorizationFailedError:
                yield f"this login may not READ the group {group}; give it an ACL for it"

    def _leave(self, group: str) -> None:
        """As a member that there is none of: whether a login may is told for groups that do not
        exist too, and nobody is disturbed."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                self._admin.remove_group_members(group, [MemberToRemove(member_id=_NOBODY)])
                return
            except RetriableError:  # a new cluster first makes the topic that groups are kept in
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def _configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        try:
            told = self._admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in names],
                config_filter="all",
            )
        except KafkaTimeoutError:
            raise
        except KafkaError as error:  # the embedded broker hangs up
            log.info("topic_configs_unknown", error=repr(error), topics=list(names))
            return {}
        return {
            name: {config: str(each["value"]) for config, each in configs.items()}
            for name, configs in told.get("topic", {}).items()
            if configs
        }


def _refusal(error: type[KafkaError], what: str, why: str | None = None) -> str:
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        return f"{what}: this login may not; give it an ACL for it, or ask who runs the brokers"
    if error is InvalidTopicError:
        return f"{what}: Kafka takes letters, digits, `.`, `_` and `-` in a name, 249 at most"
    return f"{what}: {why or error.description or error.__name__}"
