"""Every metric.

Names follow the Prometheus rules: base units (seconds, bytes), counters end in ``_total``. Every
label's values come from a closed set or from the policy files; nothing a producer writes becomes a
label. What can be read off the parts when metrics are scraped is a ``Reading``, which ``watch``
ties to them: no part keeps a gauge in step.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)

from worker.collectors import Known, Probabilities, Reading
from worker.errors import MalformedReason

REGISTRY = CollectorRegistry(auto_describe=True)

# Buckets carry their range: from a cached decision (1 ms) to a slow download with retries (60 s).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# From a request that finds everything idle to one that waited out a day's outage.
_AGES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
_TWENTIETHS = tuple(twentieth / 20 for twentieth in range(1, 21))

#: The tenants that policies name.
TENANTS = Known(100)


def _named(spec: str) -> tuple[str, Sequence[str]]:
    """Name and labels of ``name{label,label}``."""
    name, _, labels = spec.removesuffix("}").partition("{")
    return name, labels.split(",") if labels else ()


def _counter(spec: str, meaning: str, registry: CollectorRegistry | None = REGISTRY) -> Counter:
    name, labels = _named(spec)
    return Counter(name, meaning, labels, registry=registry)


def _gauge(spec: str, meaning: str, registry: CollectorRegistry | None = REGISTRY) -> Gauge:
    name, labels = _named(spec)
    return Gauge(name, meaning, labels, registry=registry)


def _histogram(spec: str, meaning: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
    name, labels = _named(spec)
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


def _reading(spec: str, meaning: str) -> Reading:
    name, labels = _named(spec)
    return Reading(name, meaning, labels, registry=REGISTRY)


# ---------------------------------------------------------------- requests and their answers

REQUESTS = _counter(
    "imagewarden_requests{lane}", "Records read, by lane (live, retries, backfill)."
)
VERDICTS = _counter(
    "imagewarden_verdicts{policy,decision,action}",
    "Verdicts acknowledged by the broker, by decision and by the action it came to.",
)
TENANT_VERDICTS = _counter(
    "imagewarden_tenant_verdicts{tenant,action}",
    "Verdicts acknowledged, by tenant: each that a policy names (the first 100 in the alphabet), "
    "other for all others, none for requests without one.",
)
DEAD_LETTERS = _counter(
    "imagewarden_dead_letters{reason}", "Dead letters acknowledged by the broker, by reason."
)
RETRIES = _counter(
    "imagewarden_retries", "Requests put on the topic of retries, acknowledged by the broker."
)
TRANSACTIONS_ABORTED = _counter(
    "imagewarden_transactions_aborted",
    "Transactions that were given up, and whose work was tried again (exactly_once).",
)
ERRORS = _counter(
    "imagewarden_errors{stage,code}",
    "Requests that could not be examined, by stage and error code.",
)
FAIL_OPEN = _counter(
    "imagewarden_fail_open{policy}",
    "Verdicts that allow an image nobody examined, because the policy's on_error says so.",
)
REQUEST_SECONDS = _histogram(
    "imagewarden_request_duration_seconds",
    "Time from a record's poll to its verdict or dead letter acknowledged.",
)
END_TO_END_SECONDS = _histogram(
    "imagewarden_end_to_end_seconds{lane}",
    "Time from a record's timestamp, by its producer's clock, to its answer acknowledged.",
    _AGES,
)
IN_FLIGHT = _gauge(
    "imagewarden_in_flight_requests{lane}",
    "Records polled and not yet answered, by lane (live, retries, backfill).",
)
OLDEST_IN_FLIGHT = _reading(
    "imagewarden_oldest_in_flight_seconds{lane}",
    "Time since the poll of the oldest record that is not answered yet; 0 where all are.",
)
POLL_AGE = _reading(
    "imagewarden_poll_age_seconds{lane}",
    "Time since the last poll: where it grows, the event loop or the consumer is stuck.",
)
COMMIT_DELAY = _reading(
    "imagewarden_commit_delay_seconds{lane}",
    "Time since the beginning of the last round of commits that took all there was to commit.",
)
CONSUMER_LAG = _gauge(
    "imagewarden_consumer_lag_records{topic,partition}",
    "Records between the last one read and the end of each assigned partition.",
)
REBALANCES = _counter(
    "imagewarden_rebalances{kind}",
    "Changes of the partitions this worker reads, by kind (assigned, revoked, lost).",
)

# ---------------------------------------------------------------- stages

STAGE_BUSY = _reading(
    "imagewarden_stage_busy_places{stage}",
    "Places that are taken: of records between poll and commit (requests and the lane), of images "
    "in work (images; images_low: not live), downloads, decoders, batches in flight (embed).",
)
STAGE_PLACES = _reading(
    "imagewarden_stage_places{stage}", "Places that there are, taken or free, by the same stages."
)
STAGE_WAITING = _reading(
    "imagewarden_stage_waiting_images{stage}", "Images that wait for a place, by the same stages."
)
STAGE_WAIT_SECONDS = _histogram(
    "imagewarden_stage_wait_seconds{stage}",
    "Time one image waited: for places of its host and among those in work (images), for a decoder "
    "(decode), for its batch (embed); and its answer, for those to its item (answer).",
)
STAGE_SECONDS = _histogram(
    "imagewarden_stage_duration_seconds{stage}",
    "Time at work on one image, with no waiting for a place (embed: that of its whole batch; "
    "publish: the embedding, answer: the verdict, until it is acknowledged).",
)
BATCH_ROWS = _histogram(
    "imagewarden_batch_rows", "Rows of pixels in a batch that went through the model.", _BATCH
)
BATCH_FILL = _histogram(
    "imagewarden_batch_fill_ratio", "Rows of a batch, as a share of a full one's.", _TENTHS
)
MODEL_BUSY_SECONDS = _counter(
    "imagewarden_model_busy_seconds",
    "Time during which at least one batch was in the model; by the rows of imagewarden_batch_rows, "
    "the model's time for an image.",
)
BATCH_MAX_ROWS = _gauge(
    "imagewarden_batch_max_rows",
    "Most rows that go through the model at once since its device ran out of memory; 0 before.",
)
BATCHES_SPLIT = _counter(
    "imagewarden_batches_split{cause}",
    "Batches tried again in halves, by cause: oom (no memory on the device), failed (an error).",
)
DEVICE_MEMORY_ALLOCATED = _reading(
    "imagewarden_device_memory_allocated_bytes{device}",
    "Of the GPU's memory, what this process's tensors take; absent on a CPU.",
)
DEVICE_MEMORY_USED = _reading(
    "imagewarden_device_memory_used_bytes{device}", "Of the GPU's memory, what anybody has taken."
)
DEVICE_MEMORY_SIZE = _reading(
    "imagewarden_device_memory_size_bytes{device}", "The GPU's memory, taken or free."
)
EMBEDDINGS_TOO_LARGE = _counter(
    "imagewarden_embeddings_too_large",
    "Embeddings larger than their topic takes: neither published nor cached.",
)
CACHE_ANSWERS = _counter(
    "imagewarden_cache_answers{kind,tier}",
    "Look-ups by what was looked up (url, embedding) and the tier that answered; none is a miss.",
)
CACHE_ERRORS = _counter(
    "imagewarden_cache_errors{tier,operation}",
    "Operations that a cache tier failed; each counted as a miss.",
)
CACHE_REJECTED = _counter(
    "imagewarden_cache_rejected{tier}",
    "Cached values that were not believed (damaged, another's, or no unit vectors of numbers).",
)
CACHE_UP = _gauge(
    "imagewarden_cache_up{tier}", "1 while the cache tier answers, 0 while it does not."
)
FETCHES = _counter(
    "imagewarden_fetches{outcome}",
    "Downloads that ended, retries included in each: fetched, not_modified, or the error code.",
)
FETCH_ATTEMPTS = _counter("imagewarden_fetch_attempts", "Tries to download, retries included.")
FETCHED_BYTES = _counter("imagewarden_fetched_bytes", "Bytes of bodies downloaded.")
ADDRESSES_REFUSED = _counter(
    "imagewarden_addresses_refused{reason}",
    "Addresses that were not to be reached, by what they are for (private, loopback, …) or port.",
)
HOST_BREAKER_OPENED = _counter(
    "imagewarden_host_breaker_opened",
    "Times that an image host was found not to answer, and was left alone for a while.",
)
HOST_BREAKERS_OPEN = _gauge(
    "imagewarden_host_breakers_open",
    "Image hosts that are left alone now because they did not answer.",
)
DECODES = _counter(
    "imagewarden_decodes{format,outcome}",
    "Images that decoders were done with, by format (jpeg, …, other) and outcome: decoded, or the "
    "error code.",
)
DECODER_KILLS = _counter(
    "imagewarden_decoder_kills{cause}",
    "Decoder processes that hung, ran out of memory or crashed, and were replaced.",
)

# ---------------------------------------------------------------- policies

CATEGORY_PROBABILITY = Probabilities(
    "imagewarden_category_probability",
    "Probabilities in verdicts acknowledged, by category, those on trial included.",
    ("policy", "category"),
    bounds=_TWENTIETHS,
    registry=REGISTRY,
)
SHADOW = _counter(
    "imagewarden_shadow{policy,category,enforced,shadow}",
    "Verdicts by what the enforced categories decided, and what one on trial would have said.",
)
CALIBRATED_AT = _reading(
    "imagewarden_calibration_timestamp_seconds{policy,category}",
    "Day of the calibration that a category decides with, where its file says one.",
)
UNCALIBRATED = _reading(
    "imagewarden_uncalibrated_categories{policy}",
    "Categories without a calibration for the margins they have now.",
)
POLICY_RELOADS = _counter(
    "imagewarden_policy_reloads{policy,outcome}",
    "Edits of a policy file seen while running, by outcome (applied, refused).",
)
POLICY_STALE = _gauge(
    "imagewarden_policy_stale{policy}",
    "1 while the policy file on disk is refused and the last good one is used instead.",
)
POLICY_LOADED_AT = _gauge(
    "imagewarden_policy_loaded_timestamp_seconds{policy}",
    "When the version that decides now was loaded.",
)
POLICY_INFO = _gauge(
    "imagewarden_policy_info{policy,version,digest}",
    "1 for the version of each policy that decides now.",
)
LISTED = _counter(
    "imagewarden_listed{policy,list,action}",
    "Verdicts by one of the policy's lists of hashes, with no model asked.",
)
BRAKED = _counter(
    "imagewarden_braked{policy}",
    "Verdicts to review that would have been to block, but for the policy's max_block_rate.",
)
BRAKES_ENGAGED = _gauge(
    "imagewarden_brakes_engaged{policy}",
    "Tenants that block is review for now, as too many of their requests would be blocked.",
)
BRAKE_LOCAL = _gauge(
    "imagewarden_brake_local",
    "1 while max_block_rate is held by this worker's requests alone: Redis is away, or none is "
    "set.",
)

# ---------------------------------------------------------------- feedback

_JUDGED = "{policy,category,action}"
_LOW, _HIGH = (f"{end} end of the {{}}'s 95 % interval." for end in ("Lower", "Upper"))

FEEDBACK_PRECISION = _gauge(
    f"imagewarden_feedback_precision{_JUDGED}",
    "Of the images that got the action or a severer one, the share that shows the category by "
    "what people said (`imagewarden feedback` alone, as all of feedback).",
)
FEEDBACK_PRECISION_LOW = _gauge(
    f"imagewarden_feedback_precision_low{_JUDGED}", _LOW.format("precision")
)
FEEDBACK_PRECISION_HIGH = _gauge(
    f"imagewarden_feedback_precision_high{_JUDGED}", _HIGH.format("precision")
)
FEEDBACK_RECALL = _gauge(
    f"imagewarden_feedback_recall{_JUDGED}",
    "Of the images that show the category by what people said, the share that got the action or a "
    "severer one. Absent where people looked at none that was allowed.",
)
FEEDBACK_RECALL_LOW = _gauge(f"imagewarden_feedback_recall_low{_JUDGED}", _LOW.format("recall"))
FEEDBACK_RECALL_HIGH = _gauge(f"imagewarden_feedback_recall_high{_JUDGED}", _HIGH.format("recall"))
FEEDBACK_JUDGED = _gauge(
    "imagewarden_feedback_judged{policy,category,action,shows}",
    "Images that people looked at, by what the category had said of them and whether they show it.",
)
FEEDBACK_UNMATCHED = _gauge(
    "imagewarden_feedback_unmatched", "Feedback that no verdict in memory says anything to."
)
FEEDBACK_MALFORMED = _counter(
    "imagewarden_feedback_malformed{reason}",
    "Records on the feedback topic that are no feedback, by reason.",
)

# ---------------------------------------------------------------- processes

MODEL_INFO = Info("imagewarden_model", "The model that embeds.", registry=REGISTRY)
BUILD_INFO = Info("imagewarden_build", "The version that runs.", registry=REGISTRY)
READY = _gauge(
    "imagewarden_ready",
    "1 once a canary image went through the model and the request topic is subscribed to.",
)
PROCESSES = _gauge(
    "imagewarden_processes",
    "Worker processes that run (`--processes` alone; its other metrics have a label `process`).",
    None,
)
PROCESS_RESTARTS = _counter(
    "imagewarden_process_restarts{process}",
    "Worker processes that died and were started again, by their number (`--processes` alone).",
    None,
)
ProcessCollector(registry=REGISTRY)  # memory, open files, processor time; on Linux alone

# What alerts see from its first increase on is there from the start: an increase is told from one
# value to the next, and the first one has none before it.
for _counted, _values in (
    (DEAD_LETTERS, [reason.value for reason in MalformedReason]),
    (BATCHES_SPLIT, ["oom", "failed"]),
    (CACHE_REJECTED, ["memory", "redis"]),
    (DECODER_KILLS, ["timeout", "memory", "crashed", "garbage"]),
    (REBALANCES, ["assigned", "revoked", "lost"]),
):
    for _value in _values:
        _counted.labels(_value)
