"""Is it healthy, how far behind is it, and what does it decide?"""

from deploy.grafana.panels import LOWEST, ORANGE, RED, YELLOW, bars, lines, number, page, rows

_RATE = "[$__rate_interval]"


def overview() -> str:
    return page(
        "overview",
        "Overview",
        "Begin here: is it healthy, how far behind is it, and what does it decide? Each panel says "
        "which page goes on from it.",
        {
            "Is it healthy?": [
                number(
                    "How many workers answer?",
                    "Share of the workers that Prometheus knows and could scrape. Below 100 %, "
                    "one is down or cannot be reached: the table of the target says which.",
                    "percentunit",
                    "avg(up)",
                    width=3,
                    steps={LOWEST: RED, 0.5: ORANGE, 1: "green"},
                ),
                number(
                    "How many are ready?",
                    "Share of the worker processes that have loaded model and policies. Those that "
                    "start count as not ready, and a first start downloads the model.",
                    "percentunit",
                    "avg(imagewarden_ready)",
                    width=3,
                    steps={LOWEST: RED, 0.5: ORANGE, 1: "green"},
                ),
                number(
                    "How many requests wait?",
                    "Records in the topics that no worker has read yet, retries that are not due "
                    "included. It matters when it grows: see below, and Pipeline for why.",
                    "short",
                    "sum(imagewarden_consumer_lag_records)",
                    width=3,
                    steps={1_000: YELLOW, 100_000: ORANGE},
                ),
                number(
                    "How old is the oldest in work?",
                    "Since it was read. Live requests take seconds. Minutes: an image server, the "
                    "model or the broker holds them up; Pipeline shows which stage is full.",
                    "s",
                    'max(imagewarden_oldest_in_flight_seconds{lane="live"})',
                    width=3,
                    steps={30: YELLOW, 120: RED},
                ),
                number(
                    "What share is undetermined?",
                    "Of verdicts: nobody examined the image, and the policy's on_error says what "
                    "becomes of it. The panel of reasons below says why.",
                    "percentunit",
                    f'(sum(rate(imagewarden_verdicts_total{{decision="undetermined"}}{_RATE})) '
                    f"or vector(0)) / sum(rate(imagewarden_verdicts_total{_RATE}))",
                    width=3,
                    steps={0.05: YELLOW, 0.2: RED},
                ),
                number(
                    "Does Redis answer?",
                    "Share of the processes that reach it. Without it everything goes on: images "
                    "are fetched and embedded again, and brakes count for each worker alone.",
                    "percentunit",
                    'avg(imagewarden_cache_up{tier="redis"})',
                    width=3,
                    steps={LOWEST: ORANGE, 1: "green"},
                    none="none set",
                ),
                number(
                    "How many policy edits are refused?",
                    "Policies whose file on disk is not the one that decides, because it is "
                    "wrong. The last good one goes on deciding; Policy says which.",
                    "short",
                    "count(max by (policy) (imagewarden_policy_stale) == 1) or vector(0)",
                    width=3,
                    steps={1: ORANGE},
                ),
                number(
                    "How many brakes are engaged?",
                    "Tenants whose blocks are reviews for now, because too many of their requests "
                    "would be blocked. Safety says of which policy.",
                    "short",
                    "sum(max by (policy) (imagewarden_brakes_engaged)) or vector(0)",
                    width=3,
                    steps={1: RED},
                ),
            ],
            "How far behind is it?": [
                lines(
                    "Does the backlog grow?",
                    "Records not read yet, by topic. A line that climbs for longer than a burst "
                    "means too few workers, or a stage that is full: see Pipeline. On the topic of "
                    "retries, records wait for their delay, and that is meant.",
                    "short",
                    {"{{topic}}": "sum by (topic) (imagewarden_consumer_lag_records)"},
                ),
                lines(
                    "Is as much answered as comes in?",
                    "Records read and answers acknowledged, a second. Answers below reads for "
                    "long: work piles up inside. Both low while the backlog grows: see Pipeline.",
                    "reqps",
                    {
                        "read": f"sum(rate(imagewarden_requests_total{_RATE}))",
                        "verdicts": f"sum(rate(imagewarden_verdicts_total{_RATE})) or vector(0)",
                        "retries": f"sum(rate(imagewarden_retries_total{_RATE}))",
                        "dead letters": f"sum(rate(imagewarden_dead_letters_total{_RATE})) "
                        "or vector(0)",
                    },
                ),
                lines(
                    "How long from produced to answered?",
                    "Of live requests, from the record's timestamp (the producer's clock) to the "
                    "acknowledged answer, waiting in the topic included. What clients feel.",
                    "s",
                    {
                        name: f"histogram_quantile({share}, sum by (le) "
                        f'(rate(imagewarden_end_to_end_seconds_bucket{{lane="live"}}{_RATE})))'
                        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
                    },
                    steps={60: RED},
                ),
                lines(
                    "Is anything stuck?",
                    "Age of the oldest record in work, and times since the last commit that "
                    "covered all, and since the last poll. Each falls back to near 0 all the time. "
                    "A line that climbs steadily is what is stuck.",
                    "s",
                    {
                        "oldest in work, {{lane}}": "max by (lane) "
                        "(imagewarden_oldest_in_flight_seconds)",
                        "commit, {{lane}}": "max by (lane) (imagewarden_commit_delay_seconds)",
                        "poll, {{lane}}": "max by (lane) (imagewarden_poll_age_seconds)",
                    },
                ),
            ],
            "What does it decide?": [
                lines(
                    "What becomes of images?",
                    "Verdicts a second, by the action they came to. Undetermined ones count as "
                    "what the policy makes of them. Policy has them by policy and version.",
                    "reqps",
                    {"{{action}}": f"sum by (action) (rate(imagewarden_verdicts_total{_RATE}))"},
                    stacked=True,
                ),
                lines(
                    "Why are images not examined?",
                    "Requests that became undetermined, a second, by stage and code. `fetch` codes "
                    "are about image servers and our way to them, `decode` about files, `embed` "
                    "about the model. README.md lists the codes.",
                    "reqps",
                    {
                        "{{stage}}: {{code}}": "topk(8, sum by (stage, code) "
                        f"(rate(imagewarden_errors_total{_RATE})))"
                    },
                    stacked=True,
                ),
                lines(
                    "How much does the cache spare?",
                    "Share of look-ups that a tier answered. Falls when Redis is away, after a "
                    "change of model, and when traffic is new; the model then has more to do.",
                    "percentunit",
                    {
                        "{{kind}}": "(sum by (kind) "
                        f'(rate(imagewarden_cache_answers_total{{tier!="none"}}{_RATE})) '
                        f"or 0 * sum by (kind) (rate(imagewarden_cache_answers_total{_RATE}))) "
                        f"/ sum by (kind) (rate(imagewarden_cache_answers_total{_RATE}))"
                    },
                    most=1,
                ),
                bars(
                    "Whose requests are blocked?",
                    "Share of blocks in a tenant's verdicts of the last hour, the ten highest. "
                    "Tenants that no policy file names are `other`, requests without one `none`.",
                    "percentunit",
                    {
                        "{{tenant}}": "topk(10, (sum by (tenant) (increase("
                        'imagewarden_tenant_verdicts_total{action="block"}[1h])) or 0 * sum by '
                        "(tenant) (increase(imagewarden_tenant_verdicts_total[1h]))) / sum by "
                        "(tenant) (increase(imagewarden_tenant_verdicts_total[1h])))"
                    },
                    most=1,
                    steps={0.3: YELLOW, 0.6: RED},
                ),
            ],
            "What fires, and what runs?": [
                rows(
                    "Which alerts are there?",
                    "Alerts that fire or are about to. Each has a section in docs/runbook.md: what "
                    "it means, where to look, what to do.",
                    "short",
                    'sum by (alertname, severity, alertstate) (ALERTS{alertname=~"Imagewarden.+"})',
                ),
                rows(
                    "Which versions run?",
                    "Processes by version and model. Two rows during a rollout only.",
                    "short",
                    "count by (version, name) (imagewarden_build_info * on "
                    "(job, instance, process) group_left (name) imagewarden_model_info)",
                ),
            ],
        },
    )
