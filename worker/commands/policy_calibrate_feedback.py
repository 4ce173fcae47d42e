"""``imagewarden policy calibrate --from-feedback``: fit a policy to what people said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import structlog

from worker.assembly import load_model
from worker.authoring.embed_examples import Embedded
from worker.authoring.judged_examples import answers_to, examples_of_judged
from worker.authoring.policy_file import PolicyFile
from worker.commands.feedback_topics import FeedbackTopics
from worker.commands.past import reader_of
from worker.commands.policy_calibrate import CalibrateOptions, calibrate_examples, fit_options
from worker.commands.render import Exit
from worker.embedding_format import parse_embedding
from worker.past.feedback import Judged
from worker.past.window import parse_time
from worker.policy import Policy, check_model
from worker.schema import now
from worker.settings import Settings
from worker.types import Embedding, ModelInfo, digest_of_model

_log = structlog.get_logger(__name__)

_MOST_ITEMS = 1_000_000
_PRECISIONS = ("fp32", "bf16", "fp16")


def calibrate_by_feedback(
    settings: Settings, path: Path, since: str, options: CalibrateOptions
) -> Exit:
    """Fits the policy's categories to the images that people looked at since then."""
    file = PolicyFile.read(path)
    fitting = fit_options(file, options)
    start = parse_time(since, now(), "--since")
    # what the topics lack should not wait for the model to load
    judged = asyncio.run(_judged(settings, file.policy, start))
    encoder = load_model(settings)
    check_model(file.policy, encoder.info)
    found = asyncio.run(_examples(settings, file.policy, encoder.info, judged))
    meanings = {one.category: one.category for one in judged}
    return calibrate_examples(file, encoder, found, fitting, options, meanings=meanings)


async def _judged(settings: Settings, policy: Policy, since: datetime) -> list[Judged]:
    async with FeedbackTopics(settings, items=_MOST_ITEMS) as topics:
        await topics.read(since)
    judged, _ = topics.join.judged(since)
    return answers_to(policy, judged)


async def _examples(
    settings: Settings, policy: Policy, info: ModelInfo, judged: list[Judged]
) -> Embedded:
    wanted = {one.sha256 for one in judged}
    # one calibration serves workers of all precisions, and is fitted on what any of them kept
    models = {
        digest_of_model(info.weights_digest, info.preprocess.digest, precision)
        for precision in (*_PRECISIONS, info.precision)
    }
    embeddings = await _embeddings(settings, wanted, models, policy.plan.digest)
    return examples_of_judged(judged, embeddings, policy)


async def _embeddings(
    settings: Settings, wanted: Collection[str], models: Collection[str], plan: str
) -> dict[str, Embedding]:
    """By sha256."""
    found: dict[bytes, Embedding] = {}
    async with reader_of(settings, settings.kafka.embeddings_topic) as reader:
        async for record in reader.read_all():
            key = record.key or b""
            if key[:64].decode(errors="replace") not in wanted:
                continue
            if record.value is None:
                found.pop(key, None)
                continue
            try:
                embedding = parse_embedding(record.value)
            except ValueError:
                _log.warning("no embedding", partition=record.partition, offset=record.offset)
                continue
            if str(embedding.key).encode() == key and embedding.key.model in models:
                found[key] = embedding
    return {each.key.sha256: each for each in found.values() if each.key.plan == plan}
