"""What was refused, killed, held back or let through?"""

from deploy.grafana.panels import ORANGE, RED, YELLOW, lines, number, page

_RATE = "[$__rate_interval]"


def safety() -> str:
    return page(
        "safety",
        "Safety",
        "What was let through that nobody examined, what was held back, and what do strangers try?",
        {
            "In the time range above": [
                number(
                    "How many were allowed unexamined?",
                    "Verdicts that allow an image nobody looked at, because a policy's on_error "
                    "says allow. Anything but 0 was decided by whoever wrote that.",
                    "short",
                    "sum(increase(imagewarden_fail_open_total[$__range])) or vector(0)",
                    steps={1: RED},
                ),
                number(
                    "How many blocks became reviews?",
                    "Verdicts that a brake turned from block to review.",
                    "short",
                    "sum(increase(imagewarden_braked_total[$__range])) or vector(0)",
                    steps={1: ORANGE},
                ),
                number(
                    "How many addresses were refused?",
                    "Hosts of URLs that lead where no request may go. A few are mistakes of "
                    "producers; many are somebody who tries.",
                    "short",
                    "sum(increase(imagewarden_addresses_refused_total[$__range])) or vector(0)",
                    steps={1: YELLOW, 1000: ORANGE},
                ),
                number(
                    "How many decoders were killed?",
                    "Decoder processes that hung, crashed, ran out of memory or answered nonsense, "
                    "and were replaced. The images that did it are undetermined.",
                    "short",
                    "sum(increase(imagewarden_decoder_kills_total[$__range]))",
                    steps={1: YELLOW, 1000: ORANGE},
                ),
                number(
                    "How many dead letters?",
                    "Records that got no verdict, because they are no requests, or because no "
                    "process survived them. `imagewarden dlq list` shows them.",
                    "short",
                    "sum(increase(imagewarden_dead_letters_total[$__range]))",
                    steps={1: YELLOW, 1000: ORANGE},
                ),
                number(
                    "How often did processes start?",
                    "Starts of worker processes beyond the first that was seen of each. Rollouts "
                    "count; without one, something ends them.",
                    "short",
                    "sum(changes(process_start_time_seconds[$__range]))",
                    steps={3: ORANGE},
                ),
            ],
            "What was let through, or held back?": [
                lines(
                    "Which policies let through what nobody examined?",
                    "A second, by policy. It follows the share of undetermined on the Overview: "
                    "while image servers are away, it is all of their images.",
                    "reqps",
                    {"{{policy}}": f"sum by (policy) (rate(imagewarden_fail_open_total{_RATE}))"},
                ),
                lines(
                    "Which brakes hold?",
                    "Tenants on the brake, and blocks that became reviews a second, by policy. A "
                    "sudden one right after an edit of the policy is the edit.",
                    "short",
                    {
                        "{{policy}}: tenants": "max by (policy) (imagewarden_brakes_engaged)",
                        "{{policy}}: reviews a second": "sum by (policy) "
                        f"(rate(imagewarden_braked_total{_RATE}))",
                    },
                ),
                lines(
                    "Do brakes count for the whole fleet?",
                    "Processes that hold max_block_rate by their own requests alone, because Redis "
                    "is away or none is set: brakes then engage later than they should.",
                    "short",
                    {"on their own": "sum(imagewarden_brake_local)"},
                ),
                lines(
                    "Which records got no verdict?",
                    "Dead letters a second, by reason. A worker stops when half of its recent "
                    "records are (WORK__MAX_REJECTED_SHARE).",
                    "reqps",
                    {
                        "{{reason}}": "sum by (reason) "
                        f"(rate(imagewarden_dead_letters_total{_RATE}))"
                    },
                    stacked=True,
                ),
            ],
            "What do strangers try?": [
                lines(
                    "Where may URLs not lead?",
                    "Addresses refused a second, by what they are. cloud_metadata, loopback and "
                    "private are what those ask for who want to see our network.",
                    "reqps",
                    {
                        "{{reason}}": "sum by (reason) "
                        f"(rate(imagewarden_addresses_refused_total{_RATE}))"
                    },
                    stacked=True,
                ),
                lines(
                    "What do decoders die of?",
                    "Killed a second, by cause. Each costs a process start, and takes at most "
                    "DECODE__TIMEOUT_SECONDS of a decoder's time.",
                    "reqps",
                    {"{{cause}}": f"sum by (cause) (rate(imagewarden_decoder_kills_total{_RATE}))"},
                    stacked=True,
                ),
                lines(
                    "Which files cannot be decoded?",
                    "Images that ended without pixels, a second, by format and why.",
                    "reqps",
                    {
                        "{{format}}: {{outcome}}": "sum by (format, outcome) (rate("
                        f'imagewarden_decodes_total{{outcome!="decoded"}}{_RATE}))'
                    },
                    stacked=True,
                ),
                lines(
                    "Is what the cache holds believed?",
                    "Values found in a cache that were not ours, or damaged, a second; they are "
                    "deleted. More than none: somebody else writes to this Redis.",
                    "reqps",
                    {"{{tier}}": f"sum by (tier) (rate(imagewarden_cache_rejected_total{_RATE}))"},
                ),
            ],
        },
    )
