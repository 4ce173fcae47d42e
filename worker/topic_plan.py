"""The topics as they should be, and what is wrong with those that are otherwise. Pure.

A topic that can do more (more partitions, more replicas, kept for longer) is as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from worker.errors import Misconfigured

DAY_SECONDS = 86_400

#: What a request may take besides its value: key, headers, and the batch around it.
REQUEST_ROOM_BYTES = 16 * 1024
#: What a dead letter takes besides the request: why it is one, and where it came from.
LETTER_ROOM_BYTES = 8 * 1024

_FOR_EVER = "-1"


@dataclass(frozen=True, slots=True)
class Names:
    """Of the topics, as the settings have them; None where the settings do without one."""

    requests: str
    verdicts: str
    dead_letters: str
    embeddings: str
    feedback: str
    retries: str | None = None
    backfill: str | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What the topics are for. ``look_back_days`` is how far back verdicts can be tried again,
    ``wait_days`` how long requests wait for workers, ``cached_days`` how long an embedding is
    served from the cache and not published again."""

    partitions: int
    replicas: int
    look_back_days: float
    wait_days: float
    cached_days: float
    request_max_bytes: int
    message_max_bytes: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A topic's ``config`` is to be ``value``, or more where ``least``; what ``otherwise``."""

    config: str
    value: str
    otherwise: str
    least: bool = True

    def kept_by(self, value: str) -> bool:
        if self.least:
            return _amount(self.config, value) >= _amount(self.config, self.value)
        return set(value.replace(" ", "").split(",")) == set(self.value.split(","))


@dataclass(frozen=True, slots=True)
class Topic:
    """One as it should be."""

    name: str
    partitions: int
    replicas: int
    rules: tuple[Rule, ...]
    read: bool
    """By workers, rather than written."""

    @property
    def configs(self) -> Mapping[str, str]:
        return {rule.config: rule.value for rule in self.rules + _safe(self.replicas)}


@dataclass(frozen=True, slots=True)
class Existing:
    """One as it is. ``replicas`` are those of the partition that has fewest, ``configs`` is None
    where the brokers do not tell, and ``operations``, what this login may do to it, likewise."""

    partitions: int
    replicas: int
    configs: Mapping[str, str] | None = None
    operations: frozenset[str] | None = None


def plan_topics(names: Names, needs: Needs) -> list[Topic]:
    """All that workers and their tools read and write. Raises ``Misconfigured`` where sizes or
    names do not go together."""
    request_bytes = needs.request_max_bytes + REQUEST_ROOM_BYTES
    if needs.message_max_bytes < request_bytes + LETTER_ROOM_BYTES:
        raise Misconfigured(
            "IMAGEWARDEN_KAFKA__MESSAGE_MAX_BYTES is too small for the dead letters of the largest "
            f"requests, whose content would not be kept; set it to "
            f"{request_bytes + LETTER_ROOM_BYTES} or more, or lower "
            "IMAGEWARDEN_KAFKA__REQUEST_MAX_BYTES"
        )
    waiting = (
        _kept(needs.wait_days, "requests that waited for longer are gone, and never answered"),
        _only_deleted("a request is gone, unread, where its item has a later one"),
        Rule(
            "max.message.bytes",
            str(request_bytes),
            "brokers refuse requests that IMAGEWARDEN_KAFKA__REQUEST_MAX_BYTES lets in",
        ),
    )
    written = Rule(
        "max.message.bytes",
        str(needs.message_max_bytes),
        "workers keep what they write below it on every topic, so dead letters of large requests "
        "are without their content",
    )
    past = _kept(needs.look_back_days, "backtests and `redecide` cannot look further back")
    rules = {
        names.requests: waiting,
        names.backfill: waiting,
        names.retries: (
            _kept(needs.wait_days, "requests that waited for longer are not tried again"),
            _only_deleted("a request is not tried again where its item has a later one"),
            written,
        ),
        names.verdicts: (
            past,
            _only_deleted("of an item's verdicts only the last one stays"),
            written,
        ),
        names.dead_letters: (
            _kept(needs.look_back_days, "older dead letters cannot be looked at, nor replayed"),
            _only_deleted("brokers refuse dead letters without a key, and the workers end"),
            written,
        ),
        names.embeddings: (
            _kept(
                needs.look_back_days + needs.cached_days,
                "an image that was answered from the cache is decided by an embedding published up "
                "to IMAGEWARDEN_CACHE__EMBEDDING_TTL_SECONDS earlier, and backtests miss it",
            ),
            Rule(
                "cleanup.policy",
                "compact,delete",
                "without compact, every repeat of an embedding is kept; without delete, each is "
                "kept for ever",
                least=False,
            ),
            written,
        ),
        names.feedback: (
            _kept(needs.look_back_days, "what people decided earlier is not learned from"),
            _only_deleted("of what people said of an item only the last word stays"),
        ),
    }
    wanted = [name for name in _all(names) if name is not None]
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise Misconfigured(
            f"{', '.join(twice)} is the name of several topics in the section KAFKA of the "
            "settings; give each one of its own"
        )
    read = (names.requests, names.retries, names.backfill)
    return [
        Topic(name, needs.partitions, needs.replicas, rules[name], read=name in read)
        for name in wanted
    ]


def differences(topic: Topic, found: Existing) -> Iterator[str]:
    """A sentence for each: what differs, what that means, and what to do."""
    if found.partitions < topic.partitions:
        few = "no more workers have work from it" if topic.read else "no more readers can share it"
        yield (
            f"{topic.name} has {found.partitions} partitions, not {topic.partitions}: {few}; add "
            "some while nothing waits in it, because items move to other partitions, and keep "
            "their order only within one"
        )
    if found.replicas < topic.replicas:
        yield (
            f"{topic.name} has {found.replicas} of each partition, not {topic.replicas}: what is "
            "on brokers that break is gone; give its partitions more replicas "
            "(kafka-reassign-partitions.sh)"
        )
    configs = found.configs or {}
    for rule in topic.rules + _safe(found.replicas):
        value = configs.get(rule.config)
        if value is not None and not rule.kept_by(value):
            yield (
                f"{topic.name} has {rule.config}={value}{_told(rule.config, value)}, not "
                f"{rule.value}{_told(rule.config, rule.value)}: {rule.otherwise}; set it to "
                f"{rule.value}{' or more' if rule.least and rule.value != _FOR_EVER else ''}"
            )
    in_sync = int(configs.get("min.insync.replicas", 1))
    if in_sync > found.replicas or in_sync == found.replicas > 1:
        yield (
            f"{topic.name} has min.insync.replicas={in_sync} and {found.replicas} of each "
            "partition: nothing can be published to it while one broker is away; set it to "
            f"{max(1, found.replicas - 1)}"
        )


def _all(names: Names) -> tuple[str | None, ...]:
    return (
        *(names.requests, names.retries, names.backfill),
        *(names.verdicts, names.dead_letters, names.embeddings, names.feedback),
    )


def _kept(days: float, otherwise: str) -> Rule:
    return Rule("retention.ms", str(math.ceil(days * DAY_SECONDS * 1000)), otherwise)


def _only_deleted(otherwise: str) -> Rule:
    return Rule("cleanup.policy", "delete", otherwise, least=False)


def _safe(replicas: int) -> tuple[Rule, ...]:
    """What makes an acknowledgement a promise."""
    return (
        Rule(
            "min.insync.replicas",
            str(2 if replicas > 2 else 1),
            "what is acknowledged may be on one broker alone, and be lost with it",
        ),
        Rule(
            "retention.bytes",
            _FOR_EVER,
            "the oldest go before their time once a partition has so many bytes",
        ),
        Rule(
            "unclean.leader.election.enable",
            "false",
            "a broker that lags behind may take over, and what was acknowledged is gone",
            least=False,
        ),
    )


def _amount(config: str, value: str) -> float:
    unlimited = config.startswith("retention.") and value == _FOR_EVER
    return math.inf if unlimited else float(value)


def _told(config: str, value: str) -> str:
    """In words, behind the number."""
    if config != "retention.ms":
        return ""
    if value == _FOR_EVER:
        return " (for ever)"
    length = timedelta(milliseconds=int(value))
    days = length / timedelta(days=1)
    return f" ({days:.3g} days)" if days >= 1 else f" ({length})"
