"""Every metric.

Names follow the Prometheus rules: base units (seconds, bytes), counters end in ``_total``. Every
label's values come from a closed set or from the policy files; nothing a producer writes becomes a
label.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

REGISTRY = CollectorRegistry(auto_describe=True)

# Buckets carry their range: from a cached decision (1 ms) to a slow download with retries (60 s).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "imagewarden_requests",
    "Records read, by lane (live, retries, backfill).",
    ["lane"],
    registry=REGISTRY,
)
VERDICTS = Counter(
    "imagewarden_verdicts",
    "Verdicts acknowledged by the broker, by decision and by the action it came to.",
    ["policy", "decision", "action"],
    registry=REGISTRY,
)
DEAD_LETTERS = Counter(
    "imagewarden_dead_letters",
    "Dead letters acknowledged by the broker, by reason.",
    ["reason"],
    registry=REGISTRY,
)
RETRIES = Counter(
    "imagewarden_retries",
    "Requests put on the topic of retries, acknowledged by the broker.",
    registry=REGISTRY,
)
TRANSACTIONS_ABORTED = Counter(
    "imagewarden_transactions_aborted",
    "Transactions that were given up, and whose work was tried again (exactly_once).",
    registry=REGISTRY,
)
ERRORS = Counter(
    "imagewarden_errors",
    "Requests that could not be examined, by stage and error code.",
    ["stage", "code"],
    registry=REGISTRY,
)
FAIL_OPEN = Counter(
    "imagewarden_fail_open",
    "Verdicts that allow an image nobody examined, because the policy's on_error says so.",
    ["policy"],
    registry=REGISTRY,
)
SHADOW = Counter(
    "imagewarden_shadow",
    "Verdicts by what the enforced categories decided, and what one on trial would have said.",
    ["policy", "category", "enforced", "shadow"],
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "imagewarden_stage_duration_seconds",
    "Time one image (one batch, for embed) spent in a stage, waiting for its slot included.",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "imagewarden_request_duration_seconds",
    "Time from a record's poll to its verdict or dead letter acknowledged.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_ROWS = Histogram(
    "imagewarden_batch_rows",
    "Rows of pixels in a batch that went through the model.",
    buckets=_BATCH,
    registry=REGISTRY,
)
BATCH_MAX_ROWS = Gauge(
    "imagewarden_batch_max_rows",
    "Most rows that go through the model at once since its device ran out of memory; 0 before.",
    registry=REGISTRY,
)
BATCHES_SPLIT = Counter(
    "imagewarden_batches_split",
    "Batches tried again in halves, by cause: oom (no memory on the device), failed (an error).",
    ["cause"],
    registry=REGISTRY,
)
EMBEDDINGS_TOO_LARGE = Counter(
    "imagewarden_embeddings_too_large",
    "Embeddings larger than their topic takes: neither published nor cached.",
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "imagewarden_in_flight_requests",
    "Records polled and not yet answered, by lane (live, retries, backfill).",
    ["lane"],
    registry=REGISTRY,
)
CACHE_ANSWERS = Counter(
    "imagewarden_cache_answers",
    "Look-ups by what was looked up (url, embedding) and the tier that answered; none is a miss.",
    ["kind", "tier"],
    registry=REGISTRY,
)
CACHE_ERRORS = Counter(
    "imagewarden_cache_errors",
    "Operations that a cache tier failed; each counted as a miss.",
    ["tier", "operation"],
    registry=REGISTRY,
)
CACHE_REJECTED = Counter(
    "imagewarden_cache_rejected",
    "Cached values that were not believed (damaged, another's, or no unit vectors of numbers).",
    ["tier"],
    registry=REGISTRY,
)
CACHE_UP = Gauge(
    "imagewarden_cache_up",
    "1 while the cache tier answers, 0 while it does not.",
    ["tier"],
    registry=REGISTRY,
)
FETCH_ATTEMPTS = Counter(
    "imagewarden_fetch_attempts", "Tries to download, retries included.", registry=REGISTRY
)
FETCHED_BYTES = Counter(
    "imagewarden_fetched_bytes", "Bytes of bodies downloaded.", registry=REGISTRY
)
HOST_BREAKER_OPENED = Counter(
    "imagewarden_host_breaker_opened",
    "Times that an image host was found not to answer, and was left alone for a while.",
    registry=REGISTRY,
)
HOST_BREAKERS_OPEN = Gauge(
    "imagewarden_host_breakers_open",
    "Image hosts that are left alone now because they did not answer.",
    registry=REGISTRY,
)
DECODER_KILLS = Counter(
    "imagewarden_decoder_kills",
    "Decoder processes that hung, ran out of memory or crashed, and were replaced.",
    ["cause"],
    registry=REGISTRY,
)
CONSUMER_LAG = Gauge(
    "imagewarden_consumer_lag_records",
    "Records between the last one read and the end of each assigned partition.",
    ["topic", "partition"],
    registry=REGISTRY,
)
REBALANCES = Counter(
    "imagewarden_rebalances",
    "Changes of the partitions this worker reads, by kind (assigned, revoked, lost).",
    ["kind"],
    registry=REGISTRY,
)
POLICY_RELOADS = Counter(
    "imagewarden_policy_reloads",
    "Edits of a policy file seen while running, by outcome (applied, refused).",
    ["policy", "outcome"],
    registry=REGISTRY,
)
POLICY_STALE = Gauge(
    "imagewarden_policy_stale",
    "1 while the policy file on disk is refused and the last good one is used instead.",
    ["policy"],
    registry=REGISTRY,
)
POLICY_INFO = Gauge(
    "imagewarden_policy_info",
    "1 for the version of each policy that decides now.",
    ["policy", "version", "digest"],
    registry=REGISTRY,
)
FEEDBACK_PRECISION = Gauge(
    "imagewarden_feedback_precision",
    "Of the images that got the action or a severer one, the share that shows the category by "
    "what people said (`imagewarden feedback` alone, as all of feedback).",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_PRECISION_LOW = Gauge(
    "imagewarden_feedback_precision_low",
    "Lower end of the precision's 95 % interval.",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_PRECISION_HIGH = Gauge(
    "imagewarden_feedback_precision_high",
    "Upper end of the precision's 95 % interval.",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_RECALL = Gauge(
    "imagewarden_feedback_recall",
    "Of the images that show the category by what people said, the share that got the action or a "
    "severer one. Absent where people looked at none that was allowed.",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_RECALL_LOW = Gauge(
    "imagewarden_feedback_recall_low",
    "Lower end of the recall's 95 % interval.",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_RECALL_HIGH = Gauge(
    "imagewarden_feedback_recall_high",
    "Upper end of the recall's 95 % interval.",
    ["policy", "category", "action"],
    registry=REGISTRY,
)
FEEDBACK_JUDGED = Gauge(
    "imagewarden_feedback_judged",
    "Images that people looked at, by what the category had said of them and whether they show it.",
    ["policy", "category", "action", "shows"],
    registry=REGISTRY,
)
FEEDBACK_UNMATCHED = Gauge(
    "imagewarden_feedback_unmatched",
    "Feedback that no verdict in memory says anything to.",
    registry=REGISTRY,
)
FEEDBACK_MALFORMED = Counter(
    "imagewarden_feedback_malformed",
    "Records on the feedback topic that are no feedback, by reason.",
    ["reason"],
    registry=REGISTRY,
)
LISTED = Counter(
    "imagewarden_listed",
    "Verdicts by one of the policy's lists of hashes, with no model asked.",
    ["policy", "list", "action"],
    registry=REGISTRY,
)
BRAKED = Counter(
    "imagewarden_braked",
    "Verdicts to review that would have been to block, but for the policy's max_block_rate.",
    ["policy"],
    registry=REGISTRY,
)
BRAKES_ENGAGED = Gauge(
    "imagewarden_brakes_engaged",
    "Tenants that block is review for now, as too many of their requests would be blocked.",
    ["policy"],
    registry=REGISTRY,
)
BRAKE_LOCAL = Gauge(
    "imagewarden_brake_local",
    "1 while max_block_rate is held by this worker's requests alone: Redis is away, or none is "
    "set.",
    registry=REGISTRY,
)
MODEL_INFO = Info("imagewarden_model", "The model that embeds.", registry=REGISTRY)
BUILD_INFO = Info("imagewarden_build", "The version that runs.", registry=REGISTRY)
READY = Gauge(
    "imagewarden_ready", "1 once a canary image went through the model.", registry=REGISTRY
)
PROCESSES = Gauge(
    "imagewarden_processes",
    "Worker processes that run (`--processes` alone; its other metrics have a label `process`).",
    registry=None,
)
PROCESS_RESTARTS = Counter(
    "imagewarden_process_restarts",
    "Worker processes that died and were started again, by their number (`--processes` alone).",
    ["process"],
    registry=None,
)
