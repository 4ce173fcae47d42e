"""Where does the time go, and what is in the way?"""

from deploy.grafana.panels import ORANGE, YELLOW, bars, heat, lines, number, page

_RATE = "[$__rate_interval]"
_FULL = "max by (stage) (imagewarden_stage_busy_places / imagewarden_stage_places)"
_FULL_OF_LIVE = (
    "max by (stage) (imagewarden_stage_busy_places / "
    'imagewarden_stage_places{stage!~"requests_(retries|backfill)"})'
)


def pipeline() -> str:
    return page(
        "pipeline",
        "Pipeline",
        "Where does the time of a request go, which stage is full, and what would make it faster?",
        {
            "Which stage is in the way?": [
                number(
                    "Which stage is the fullest?",
                    "The one with the least room left, in the process that has the least. The "
                    "stage to widen is the last one of requests, images, fetch, decode and embed "
                    "that is full: those before it are full because it is. Retries and backfill "
                    "fill theirs while they wait, and are not asked about.",
                    "percentunit",
                    f"topk(1, {_FULL_OF_LIVE})",
                    legend="{{stage}}",
                    width=6,
                    steps={0.8: YELLOW, 0.95: ORANGE},
                ),
                number(
                    "Where do images wait the longest?",
                    "The stage whose queue costs an image the most time, and how much on average.",
                    "s",
                    f"topk(1, sum by (stage) (rate(imagewarden_stage_wait_seconds_sum{_RATE})) / "
                    f"(sum by (stage) (rate(imagewarden_stage_wait_seconds_count{_RATE})) > 0))",
                    legend="{{stage}}",
                    width=6,
                    steps={0.5: YELLOW, 5: ORANGE},
                ),
                number(
                    "Where is the most time worked?",
                    "The stage that works the longest for a request, on average over all requests: "
                    "those that the cache answers cost it nothing.",
                    "s",
                    f"topk(1, sum by (stage) (rate(imagewarden_stage_duration_seconds_sum{_RATE})) "
                    "/ scalar(sum(rate(imagewarden_request_duration_seconds_count"
                    f"{_RATE})) > 0))",
                    legend="{{stage}}",
                    width=6,
                ),
                number(
                    "How long does a request take?",
                    "Nine of ten take less, from being read to the acknowledged answer.",
                    "s",
                    "histogram_quantile(0.9, sum by (le) "
                    f"(rate(imagewarden_request_duration_seconds_bucket{_RATE})))",
                    width=6,
                    steps={10: YELLOW, 30: ORANGE},
                ),
                bars(
                    "How full is each stage?",
                    "Places taken of those there are, in the fullest process. requests_*: records "
                    "between poll and commit (WORK__IN_FLIGHT). images: those in work "
                    "(WORK__IMAGES), images_low the retries and backfill among them. decode: "
                    "children (DECODE__PROCESSES). embed: batches in flight.",
                    "percentunit",
                    {"{{stage}}": _FULL},
                    most=1,
                    steps={0.8: YELLOW, 0.95: ORANGE},
                ),
                lines(
                    "Which stages have been full?",
                    "The same over time. A stage near 100 % with others far below is the "
                    "bottleneck. All low while the backlog grows: the worker is not reading.",
                    "percentunit",
                    {"{{stage}}": _FULL},
                    most=1,
                ),
            ],
            "Where does an image's time go?": [
                lines(
                    "How long is it worked on?",
                    "Seconds of work of a stage for one request, on average over all requests, "
                    "those the cache answers included. `embed` is the time of the whole batch.",
                    "s",
                    {
                        "{{stage}}": "sum by (stage) "
                        f"(rate(imagewarden_stage_duration_seconds_sum{_RATE})) / "
                        "scalar(sum(rate("
                        f"imagewarden_request_duration_seconds_count{_RATE})) > 0)"
                    },
                    stacked=True,
                ),
                lines(
                    "How long does it wait?",
                    "Seconds in the queue of a stage, for one image that came there. images: for a "
                    "place of its host and among the images in work; decode: for a child; embed: "
                    "for its batch; answer: for the answers to older requests of its item.",
                    "s",
                    {
                        "{{stage}}": "sum by (stage) "
                        f"(rate(imagewarden_stage_wait_seconds_sum{_RATE})) / (sum by (stage) "
                        f"(rate(imagewarden_stage_wait_seconds_count{_RATE})) > 0)"
                    },
                    stacked=True,
                ),
                lines(
                    "How long does the slowest hundredth take?",
                    "Of those that came to a stage, 99 % were worked on for less. Far above the "
                    "mean: a few images or hosts are slow, not the stage.",
                    "s",
                    {
                        "{{stage}}": "histogram_quantile(0.99, sum by (stage, le) "
                        f"(rate(imagewarden_stage_duration_seconds_bucket{_RATE})))"
                    },
                ),
                lines(
                    "How many images wait for a place?",
                    "Now, before each stage. The queue stands before the bottleneck.",
                    "short",
                    {"{{stage}}": "sum by (stage) (imagewarden_stage_waiting_images)"},
                    stacked=True,
                ),
                heat(
                    "How long do requests take?",
                    "Each column is a moment, brighter where more requests ended. Two bands are "
                    "cached and fresh images; a band that rises is a stage that slows down.",
                    "s",
                    f"sum by (le) (rate(imagewarden_request_duration_seconds_bucket{_RATE}))",
                ),
                lines(
                    "How many requests are inside?",
                    "Records read and not answered, by lane. At the bound (WORK__IN_FLIGHT) the "
                    "worker reads no more until some are answered.",
                    "short",
                    {"{{lane}}": "sum by (lane) (imagewarden_in_flight_requests)"},
                    stacked=True,
                ),
            ],
            "Fetching": [
                lines(
                    "What comes of downloads?",
                    "Downloads that ended, a second, by outcome. One code rising alone is usually "
                    "one host; dns_failed, connect_failed and fetch_timeout together are our way "
                    "out. host_unavailable: a host that is left alone for a while.",
                    "reqps",
                    {"{{outcome}}": f"sum by (outcome) (rate(imagewarden_fetches_total{_RATE}))"},
                    stacked=True,
                ),
                lines(
                    "Are there hosts that do not answer?",
                    "Hosts left alone now, on the worker with the most, and tries for each "
                    "download: above 1 where downloads are tried again.",
                    "short",
                    {
                        "hosts left alone": "max(imagewarden_host_breakers_open)",
                        "tries for a download": "sum(rate("
                        f"imagewarden_fetch_attempts_total{_RATE})) / "
                        f"(sum(rate(imagewarden_fetches_total{_RATE})) > 0)",
                    },
                    width=6,
                ),
                lines(
                    "How much is downloaded?",
                    "Bytes of bodies. Flat at the top of what the network gives: it is the limit.",
                    "Bps",
                    {"bodies": f"sum(rate(imagewarden_fetched_bytes_total{_RATE}))"},
                    width=6,
                ),
            ],
            "Decoding and the model": [
                lines(
                    "What is decoded?",
                    "Images that decoders ended with, a second, by format.",
                    "reqps",
                    {"{{format}}": f"sum by (format) (rate(imagewarden_decodes_total{_RATE}))"},
                    width=8,
                    stacked=True,
                ),
                lines(
                    "How long does the model take?",
                    "For one image: the time it was busy, divided by the rows it was given. It "
                    "rises when batches are small, and when something else uses the device.",
                    "s",
                    {
                        "one image": "sum(rate("
                        f"imagewarden_model_busy_seconds_total{_RATE})) / "
                        f"(sum(rate(imagewarden_batch_rows_sum{_RATE})) > 0)"
                    },
                    width=8,
                ),
                lines(
                    "How full are batches?",
                    "Rows of a batch, of those in a full one, on average. Low with the model busy "
                    "and images waiting: too few are in work to fill them (WORK__IMAGES). Else as "
                    "it should be: no image waits for others while the model could begin.",
                    "percentunit",
                    {
                        "fill": f"sum(rate(imagewarden_batch_fill_ratio_sum{_RATE})) / "
                        f"(sum(rate(imagewarden_batch_fill_ratio_count{_RATE})) > 0)"
                    },
                    width=8,
                    most=1,
                ),
                lines(
                    "How full is the device's memory?",
                    "GPUs only. Ours is what our tensors take, all is what anybody does. Near the "
                    "top, batches are split: see beside.",
                    "percentunit",
                    {
                        "ours, {{instance}} {{device}}": "sum by (instance, device) "
                        "(imagewarden_device_memory_allocated_bytes) / max by (instance, device) "
                        "(imagewarden_device_memory_size_bytes)",
                        "all, {{instance}} {{device}}": "max by (instance, device) "
                        "(imagewarden_device_memory_used_bytes / "
                        "imagewarden_device_memory_size_bytes)",
                    },
                    most=1,
                ),
                lines(
                    "Are batches split?",
                    "Batches tried again in halves. oom: the device had no memory, and the size "
                    "that fits is remembered. failed: one image broke the model.",
                    "reqps",
                    {"{{cause}}": f"sum by (cause) (rate(imagewarden_batches_split_total{_RATE}))"},
                ),
            ],
            "Around it": [
                lines(
                    "Which cache answers?",
                    "Look-ups a second: url is whether a URL was seen lately, embedding whether "
                    "its content was. `none` is a miss, which means a download or the model.",
                    "reqps",
                    {
                        "{{kind}}: {{tier}}": "sum by (kind, tier) "
                        f"(rate(imagewarden_cache_answers_total{_RATE}))"
                    },
                    stacked=True,
                ),
                lines(
                    "Does the cache fail?",
                    "Operations that Redis failed or was too slow for; each is a miss.",
                    "reqps",
                    {
                        "{{tier}}: {{operation}}": "sum by (tier, operation) "
                        f"(rate(imagewarden_cache_errors_total{_RATE}))"
                    },
                ),
                lines(
                    "Do partitions move?",
                    "Partitions assigned, revoked and lost, in five minutes. Rollouts and scaling "
                    "show here. Without either, members are slow or are thrown out: work is done "
                    "twice.",
                    "short",
                    {"{{kind}}": "sum by (kind) (increase(imagewarden_rebalances_total[5m]))"},
                    width=8,
                ),
                lines(
                    "Is the processor the limit?",
                    "Cores that a worker process uses, without its decoders, by instance.",
                    "short",
                    {"{{instance}}": f"sum by (instance) (rate(process_cpu_seconds_total{_RATE}))"},
                    width=8,
                ),
                lines(
                    "Does memory stay within bounds?",
                    "Resident memory of worker processes, without their decoders, by instance. It "
                    "levels off within an hour; ARCHITECTURE.md says what it is made of.",
                    "bytes",
                    {"{{instance}}": "sum by (instance) (process_resident_memory_bytes)"},
                    width=8,
                ),
            ],
        },
    )
