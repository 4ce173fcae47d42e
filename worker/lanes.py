"""The topics that a worker reads, each with a pipeline and a consumer group of its own.

What they share is the model, and the order in which images get to it: live requests before those
that are tried again, and both before a backfill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from worker.answers import Answerer, AnswerTopics
from worker.brake import Brake
from worker.delivery import AtLeastOnce, Delivery, ExactlyOnce
from worker.examine import Examiner
from worker.judge import Judge
from worker.ledger import Ledger
from worker.pipeline import Limits, Pipeline
from worker.rejections import Rejections
from worker.reload import PolicyStore
from worker.retries import RetryPlan
from worker.seams import Publisher
from worker.settings import Settings
from worker.solitude import Solitude
from worker.source import KafkaSource
from worker.transactions import KafkaTransactions
from worker.types import ModelInfo, Record
from worker.watch import watching_lane


@dataclass(frozen=True, slots=True)
class Judging:
    """What the lanes share."""

    examiner: Examiner
    policies: PolicyStore
    model: ModelInfo
    brake: Brake


@dataclass(frozen=True, slots=True)
class _Lane:
    """``priority`` 0 is the highest; ``retrying``: its records are retries."""

    name: str
    topic: str
    group: str
    priority: int
    in_flight: int
    retrying: bool = False


def _lanes(settings: Settings) -> Iterator[_Lane]:
    kafka, in_flight = settings.kafka, settings.work.in_flight
    yield _Lane("live", kafka.requests_topic, kafka.group, 0, in_flight)
    # The others hold a quarter as many: each is a request in memory
    few = max(1, in_flight // 4)
    if settings.retry.attempts:
        yield _Lane("retries", kafka.retries_topic, f"{kafka.group}.retries", 1, few, True)
    if kafka.backfill_topic:
        yield _Lane("backfill", kafka.backfill_topic, f"{kafka.group}.backfill", 2, few)


async def open_pipelines(
    settings: Settings,
    judging: Judging,
    publisher: Publisher,
    message_bytes: int,
    parts: AsyncExitStack,
) -> Sequence[Pipeline]:
    """A pipeline for each topic, as a member of its group; ``parts`` closes what they need.
    ``message_bytes`` is the largest message that the topics take."""
    solitude = Solitude()
    plan = _retry_plan(settings)
    pipelines, starting = [], []
    for lane in _lanes(settings):
        source = _source(settings, lane)
        ledger = Ledger(max_deaths=settings.work.poison_deaths)
        delivery = await _delivery(settings, lane, source, ledger, publisher, message_bytes, parts)
        pipeline = Pipeline(
            lane=lane.name,
            source=source,
            answerer=_answerer(settings, lane, judging, publisher, plan),
            ledger=ledger,
            delivery=delivery,
            rejections=Rejections(
                share=settings.work.max_rejected_share, window=settings.work.rejected_window
            ),
            solitude=solitude,
            limits=_limits(settings, lane),
            wait=plan.seconds_until_due if plan and lane.retrying else _at_once,
        )
        parts.enter_context(watching_lane(lane.name, pipeline))
        parts.push_async_callback(source.close)
        pipelines.append(pipeline)
        starting.append(source.start(drain=pipeline.drain, forget=pipeline.forget))
    await asyncio.gather(*starting)
    return pipelines


def _at_once(record: Record) -> float:
    return 0.0


def _source(settings: Settings, lane: _Lane) -> KafkaSource:
    return KafkaSource(
        bootstrap=settings.kafka.bootstrap,
        topics=[lane.topic],
        group=lane.group,
        client_id=f"{settings.worker}.{lane.name}",
        session_timeout_seconds=settings.kafka.session_timeout_seconds,
        options=settings.kafka_security.options(),
    )


def _retry_plan(settings: Settings) -> RetryPlan | None:
    retry = settings.retry
    if not retry.attempts:
        return None
    return RetryPlan(settings.kafka.retries_topic, retry.attempts, retry.delay_seconds)


def _answerer(
    settings: Settings,
    lane: _Lane,
    judging: Judging,
    publisher: Publisher,
    plan: RetryPlan | None,
) -> Answerer:
    kafka = settings.kafka
    return Answerer(
        judge=Judge(
            examiner=judging.examiner,
            policies=judging.policies,
            model=judging.model,
            worker=settings.worker,
            priority=lane.priority,
            brake=judging.brake,
        ),
        publisher=publisher,
        topics=AnswerTopics(kafka.verdicts_topic, kafka.dead_letters_topic),
        retries=plan,
        retrying=lane.retrying,
        request_bytes=kafka.request_max_bytes,
        worker=settings.worker,
    )


def _limits(settings: Settings, lane: _Lane) -> Limits:
    kafka = settings.kafka
    exactly_once = settings.delivery == "exactly_once"
    return Limits(
        in_flight=lane.in_flight,
        commit_interval_seconds=kafka.transaction_interval_seconds
        if exactly_once
        else kafka.commit_interval_seconds,
        drain_seconds=settings.work.drain_seconds,
    )


async def _delivery(
    settings: Settings,
    lane: _Lane,
    source: KafkaSource,
    ledger: Ledger,
    publisher: Publisher,
    message_bytes: int,
    parts: AsyncExitStack,
) -> Delivery:
    if settings.delivery == "at_least_once":
        return AtLeastOnce(publisher=publisher, source=source, ledger=ledger)
    kafka = settings.kafka
    transactions = KafkaTransactions(
        bootstrap=kafka.bootstrap,
        client_id=f"{settings.worker}.{lane.name}",
        transactional_id=f"{kafka.transactional_id or f'{kafka.group}.{settings.worker}'}"
        f".{lane.name}",
        max_message_bytes=message_bytes,
        compression=kafka.compression,
        transaction_timeout_seconds=kafka.transaction_timeout_seconds,
        options=settings.kafka_security.options(),
    )
    parts.push_async_callback(transactions.close)
    await transactions.start()
    return ExactlyOnce(transactions=transactions, source=source, ledger=ledger)
