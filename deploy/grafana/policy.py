"""What do policies decide, on what grounds, and do those still hold?"""

from deploy.grafana.panels import (
    ORANGE,
    YELLOW,
    bars,
    choice,
    heat,
    length,
    lines,
    page,
    rows,
)

_RATE = "[$__rate_interval]"
_OF = '{policy=~"$policy"}'
_SEEN = f"imagewarden_category_probability_count{_OF}"
#: The version that decides in the process that counted: 1 for each series of policy_info.
_VERSION = (
    "* on (job, instance, process, policy) group_left (version) "
    f"(imagewarden_policy_info{_OF} == 1)"
)
#: What a trial said as often as the enforced categories did: PromQL compares no labels.
_AGREED = " or ".join(
    f'rate(imagewarden_shadow_total{{policy=~"$policy", enforced="{action}", shadow="{action}"}}'
    f"{_RATE})"
    for action in ("allow", "review", "block")
)


def _shares(range_and_offset: str) -> str:
    """The share of images at or below each bound of probability, by category."""
    labels = "policy, category"
    buckets = f"rate(imagewarden_category_probability_bucket{_OF}{range_and_offset})"
    counts = f"rate({_SEEN}{range_and_offset})"
    return (
        f"sum by ({labels}, le) ({buckets}) / on ({labels}) group_left () "
        f"(sum by ({labels}) ({counts}) > 0)"
    )


def policy() -> str:
    return page(
        "policy",
        "Policy",
        "What do policies decide, by category and version; what would categories on trial say; do "
        "the grounds still hold?",
        {
            "Which policy decides?": [
                rows(
                    "Do all workers decide by the same version?",
                    "Processes by policy, version and digest. Two rows for one policy: some "
                    "workers have not read the edit, or refuse it.",
                    "short",
                    f"count by (policy, version, digest) (imagewarden_policy_info{_OF} == 1)",
                    width=8,
                ),
                rows(
                    "Since when does it decide?",
                    "When the version in force was loaded, in the process that was last.",
                    "dateTimeAsIso",
                    f"1000 * max by (policy) (imagewarden_policy_loaded_timestamp_seconds{_OF})",
                    width=8,
                ),
                lines(
                    "Were edits applied or refused?",
                    "Edits of policy files seen, in five minutes, over all processes. The log line "
                    "of a refused one says why: `policy_refused`.",
                    "short",
                    {
                        "{{policy}}: {{outcome}}": "sum by (policy, outcome) "
                        f"(increase(imagewarden_policy_reloads_total{_OF}[5m]))",
                        "{{policy}}: stale": f"max by (policy) (imagewarden_policy_stale{_OF})",
                    },
                    width=8,
                ),
            ],
            "What does it decide?": [
                lines(
                    "What share is blocked, by version?",
                    "Of verdicts, by policy and the version that gave them. A step at a change of "
                    "version is what the edit did; without a change, traffic is different.",
                    "percentunit",
                    {
                        "{{policy}} {{version}}": "(sum by (policy, version) (rate("
                        'imagewarden_verdicts_total{action="block", policy=~"$policy"}'
                        f"{_RATE}) {_VERSION}) or 0 * sum by (policy, version) "
                        f"(rate(imagewarden_verdicts_total{_OF}{_RATE}) {_VERSION})) / "
                        "(sum by (policy, version) "
                        f"(rate(imagewarden_verdicts_total{_OF}{_RATE}) {_VERSION}) > 0)"
                    },
                    width=8,
                ),
                lines(
                    "What becomes of images?",
                    "Verdicts a second, by policy and the action they came to.",
                    "reqps",
                    {
                        "{{policy}}: {{action}}": "sum by (policy, action) "
                        f"(rate(imagewarden_verdicts_total{_OF}{_RATE}))"
                    },
                    width=8,
                    stacked=True,
                ),
                lines(
                    "What do lists settle?",
                    "Verdicts a second by a list of hashes, with no model asked.",
                    "reqps",
                    {
                        "{{policy}}: {{list}}: {{action}}": "sum by (policy, list, action) "
                        f"(rate(imagewarden_listed_total{_OF}{_RATE}))"
                    },
                    width=8,
                ),
            ],
            "On what grounds?": [
                lines(
                    "How much does each category find?",
                    "Share of images whose probability is above one half, on trial or enforced. "
                    "It is what thresholds cut from.",
                    "percentunit",
                    {
                        "{{policy}}: {{category}}": "1 - (sum by (policy, category) (rate("
                        'imagewarden_category_probability_bucket{le="0.5", policy=~"$policy"}'
                        f"{_RATE})) / (sum by (policy, category) (rate({_SEEN}{_RATE})) > 0))"
                    },
                ),
                lines(
                    "How high do probabilities go?",
                    "Of each category, 99 % of images have less. A category whose line lies on its "
                    "threshold decides one image in a hundred.",
                    "percentunit",
                    {
                        "{{policy}}: {{category}}": "histogram_quantile(0.99, sum by "
                        "(policy, category, le) (rate(imagewarden_category_probability_bucket"
                        f"{_OF}{_RATE})))"
                    },
                    most=1,
                ),
                heat(
                    "How are the probabilities of $category spread?",
                    "Each column is a moment, brighter where more images lie. Most belong at the "
                    "bottom. A band in the middle is what the category cannot tell: look there "
                    "for labels.",
                    "percentunit",
                    "sum by (le) (rate(imagewarden_category_probability_bucket"
                    '{policy=~"$policy", category=~"$category"}'
                    f"{_RATE}))",
                ),
                lines(
                    "Has traffic drifted away?",
                    "The largest difference, over all probabilities, between the share of images "
                    "below it now (over $window) and as long ago as `Compared with` says: 0 the "
                    "same, 1 nothing alike. After a change of policy it is the change; without "
                    "one, images are different, and calibration may no longer hold.",
                    "percentunit",
                    {
                        "{{policy}}: {{category}}": "max by (policy, category) "
                        f"(abs({_shares('[$window]')} - ({_shares('[$window] offset $past')})))"
                    },
                    most=1,
                    steps={0.1: YELLOW, 0.25: ORANGE},
                ),
            ],
            "What would categories on trial do?": [
                lines(
                    "How often does a trial disagree?",
                    "Share of verdicts in which a category on trial would have decided otherwise "
                    "than the enforced ones did. `imagewarden policy backtest` shows the images.",
                    "percentunit",
                    {
                        "{{policy}}: {{category}}": f"1 - (sum by (policy, category) ({_AGREED}) "
                        "or 0 * sum by (policy, category) (rate(imagewarden_shadow_total"
                        f"{_OF}{_RATE}))) / (sum by (policy, category) "
                        f"(rate(imagewarden_shadow_total{_OF}{_RATE})) > 0)"
                    },
                ),
                bars(
                    "What would it have done instead?",
                    "Verdicts of the last hour, by what was decided and what the category on trial "
                    "would have said. `allow → block` is what its enforcement would add.",
                    "short",
                    {
                        "{{category}}: {{enforced}} → {{shadow}}": "sum by (category, enforced, "
                        f"shadow) (increase(imagewarden_shadow_total{_OF}[1h]))"
                    },
                ),
            ],
            "Do the grounds still hold?": [
                bars(
                    "How old are calibrations?",
                    "Since the day each category was fitted. Old ones are not wrong; hold them "
                    "against the drift above, and against precision beside.",
                    "d",
                    {
                        "{{policy}}: {{category}}": "(time() - max by (policy, category) "
                        f"(imagewarden_calibration_timestamp_seconds{_OF})) / 86400"
                    },
                    width=6,
                    steps={90: YELLOW, 180: ORANGE},
                ),
                bars(
                    "How many categories are not calibrated?",
                    "Their probabilities are guesses, and they may not block unless the policy "
                    "says so.",
                    "short",
                    {"{{policy}}": f"max by (policy) (imagewarden_uncalibrated_categories{_OF})"},
                    width=6,
                    steps={1: YELLOW},
                ),
                lines(
                    "How often are people of the same mind?",
                    "Precision by what people said of verdicts, and the ends of its 95 % interval; "
                    "from `imagewarden feedback`. A wide interval asks for more labels.",
                    "percentunit",
                    {
                        "{{category}}: {{action}}": f"imagewarden_feedback_precision{_OF}",
                        "{{category}}: {{action}}, low": f"imagewarden_feedback_precision_low{_OF}",
                        "{{category}}: {{action}}, high": "imagewarden_feedback_precision_high"
                        f"{_OF}",
                    },
                    width=6,
                    most=1,
                ),
                lines(
                    "How much is found of what there is?",
                    "Recall by what people said, of images that were allowed too; from "
                    "`imagewarden feedback`.",
                    "percentunit",
                    {"{{category}}: {{action}}": f"imagewarden_feedback_recall{_OF}"},
                    width=6,
                    most=1,
                ),
            ],
        },
        choices=(
            choice("policy", "Policy", 'label_values(imagewarden_policy_info{job="$job"}, policy)'),
            choice(
                "category",
                "Category",
                'label_values(imagewarden_category_probability_count{job="$job", '
                'policy=~"$policy"}, category)',
            ),
            length("window", "Drift over", "1h", "6h", "1d"),
            length("past", "Compared with", "1w", "1d", "1h"),
        ),
    )
