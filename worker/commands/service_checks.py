"""What a worker with these settings needs of Kafka, Redis and an egress proxy: asked for and
tried, with nothing changed that lasts longer than a second. Blocks.

Each check gives a sentence for each thing that is wrong.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from worker.commands.settings_show import MASK, masked_url
from worker.commands.topics import names_of
from worker.fetch import tls_context
from worker.proxy import EgressProxy
from worker.settings import Settings
from worker.topic_admin import TopicAdmin, topic_admin
from worker.topic_plan import DAY_SECONDS, Existing, Needs, differences, plan_topics


class Note(str):
    """What is well, and worth knowing; any other sentence of a check is of what is wrong."""

    __slots__ = ()


_REDIS_SECONDS = 5.0
_PINGS = 3


def kafka_problems(settings: Settings) -> Iterator[str]:
    """Raises ``Misconfigured`` and ``ConnectionError`` where no broker takes us."""
    kafka = settings.kafka
    with topic_admin(
        kafka.bootstrap, client_id=settings.worker, options=settings.kafka_security.options()
    ) as admin:
        yield from _topic_problems(settings, admin)
        groups = [kafka.group]
        groups += [f"{kafka.group}.retries"] if settings.retry.attempts else []
        groups += [f"{kafka.group}.backfill"] if kafka.backfill_topic else []
        yield from admin.group_problems(groups)


def _topic_problems(settings: Settings, admin: TopicAdmin) -> Iterator[str]:
    names = names_of(settings)
    # Only what a worker cannot do without: how much of it is for `topics create` to say
    needs = Needs(
        partitions=1,
        replicas=1,
        look_back_days=0,
        wait_days=0,
        cached_days=settings.cache.embedding_ttl_seconds / DAY_SECONDS,
        request_max_bytes=settings.kafka.request_max_bytes,
        message_max_bytes=settings.kafka.message_max_bytes,
    )
    topics = [each for each in plan_topics(names, needs) if each.name != names.feedback]
    wanted = _operations(settings)
    found, refused = admin.describe([topic.name for topic in topics])
    for topic in topics:
        if (existing := found.get(topic.name)) is not None:
            yield from differences(topic, existing)
            yield from _lacks(topic.name, existing, wanted[topic.name])
        else:
            yield refused.get(topic.name) or (
                f"there is no topic {topic.name}; run `imagewarden topics create`, or correct its "
                "name in the settings"
            )


def _operations(settings: Settings) -> Mapping[str, frozenset[str]]:
    """What a worker does to each topic, in Kafka's words."""
    names = names_of(settings)
    wanted = {
        names.requests: {"READ"},
        names.backfill: {"READ"},
        names.retries: {"READ", "WRITE"},
        names.verdicts: {"WRITE"},
        names.dead_letters: {"WRITE"},
        names.embeddings: {"WRITE"},
    }
    return {name: frozenset(does) for name, does in wanted.items() if name is not None}


def _lacks(name: str, existing: Existing, wanted: frozenset[str]) -> Iterator[str]:
    if existing.operations is not None and (missing := wanted - existing.operations):
        yield f"this login may not {' and '.join(sorted(missing))} {name}; give it an ACL for it"


def redis_problems(settings: Settings) -> Iterator[str]:
    if settings.redis.url is None:
        yield Note("none is set: each worker caches what it saw itself")
        return
    url = settings.redis.url.get_secret_value()
    place = masked_url(url)
    try:
        client = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        client.connection_pool.make_connection()  # which is when options are looked at
    except (ValueError, TypeError, AttributeError, RedisError):  # which may quote the password
        yield f"{place} is no URL of a Redis; check IMAGEWARDEN_REDIS__URL"
        return
    with client:
        try:
            yield from _pinged(client, settings)
            yield from _memory(client)
            yield from _written(client, settings)
        except AuthenticationError as error:
            yield (
                f"the Redis at {place} refuses our login ({_reply(error, client)}); check the user "
                "and the password in IMAGEWARDEN_REDIS__URL, percent-encoded"
            )
        except ResponseError as error:
            yield (
                f"the Redis at {place} refuses what we ask ({_reply(error, client)}); check our "
                "user's rights"
            )
        except (RedisError, OSError) as error:
            yield (
                f"no Redis answers at {place} ({_cause(error)}); check IMAGEWARDEN_REDIS__URL, and "
                "that it is up"
            )


def _reply(error: RedisError, client: Redis) -> str:
    """What Redis said without what it quotes: of an AUTH that it does not know, the password."""
    said = str(error).partition(", with args")[0]
    password = client.get_connection_kwargs().get("password")
    return said.replace(password, MASK) if password else said


def _pinged(client: Redis, settings: Settings) -> Iterator[str]:
    client.ping()  # connects, which takes longer
    took = []
    for _ in range(_PINGS):
        began = time.monotonic()
        client.ping()
        took.append(time.monotonic() - began)
    if min(took) > settings.redis.timeout_seconds:
        yield (
            f"Redis answers in {min(took):.3f} s, later than IMAGEWARDEN_REDIS__TIMEOUT_SECONDS "
            f"({settings.redis.timeout_seconds:g}), so every look-up is a miss; bring it nearer, "
            "or raise the limit"
        )


def _memory(client: Redis) -> Iterator[str]:
    try:
        told = client.info("memory")
    except NoPermissionError:
        return
    policy, limit = str(told.get("maxmemory_policy", "")), int(told.get("maxmemory", 0))
    if not limit:
        yield (
            "Redis has no maxmemory, and may grow until its machine has no memory left; set "
            "maxmemory, and maxmemory-policy allkeys-lru"
        )
    elif policy == "noeviction":
        yield (
            f"Redis refuses writes once it holds {limit} bytes (maxmemory-policy noeviction), and "
            "nothing new is cached; set it to allkeys-lru"
        )


def _written(client: Redis, settings: Settings) -> Iterator[str]:
    """By a key that is gone in a second."""
    key = f"{settings.redis.prefix}settings-check"
    try:
        client.set(key, b"1", px=1000)
        client.get(key)
    except ReadOnlyError:
        yield "Redis takes no writes, as a replica does; name its primary"
    except NoPermissionError as error:
        yield f"our user of Redis may not use the keys {settings.redis.prefix}* ({error})"
    except OutOfMemoryError:
        yield "Redis is full and takes no writes; give it more memory, or let it evict keys"


def egress_problems(settings: Settings) -> Iterator[str]:
    """Raises ``Misconfigured`` where what is set is no proxy, or holds no certificates."""
    tls_context(str(settings.fetch.ca_file) if settings.fetch.ca_file else None)
    if settings.fetch.egress_proxy is None:
        return
    proxy = EgressProxy.parse(settings.fetch.egress_proxy.get_secret_value())
    try:
        socket.create_connection(
            (proxy.host, proxy.port), settings.fetch.connect_timeout_seconds
        ).close()
    except OSError as error:
        yield (
            f"the egress proxy at {proxy.host}:{proxy.port} cannot be reached ({_cause(error)}); "
            "check IMAGEWARDEN_FETCH__EGRESS_PROXY"
        )


def _cause(error: BaseException) -> str:
    """What the system says at the bottom of it, which quotes nothing of ours."""
    while isinstance(below := error.__cause__ or error.__context__, Exception):
        error = below
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
