"""What a host that never answers costs the others: ``python -m tests.bench.hosts``.

Requests for images of two hosts wait on the topic, and are worked on as fast as it goes: alone, and
with as many among them for a host that takes connections and says nothing. The rate is that of the
images which can be had, up to the last of them. Every round has a fresh worker and fresh topics,
for what the silent host is asked for comes again a minute later.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import socket
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from tests.bench.service import ENCODERS, Client, image_requests, service
from worker.bench.image_server import image_server
from worker.demo.stage import Stage
from worker.schema import Verdict

_IMAGES = 100  # distinct pictures of a host; the others are copies of them with other bytes
_DELAY_SECONDS = 0.03  # until an image comes
_FIRST_SECONDS = 5.0  # until the silence of a host is noticed, and some


@dataclass(frozen=True)
class Round:
    good: int
    seconds: float
    """From the first good verdict to the last."""
    first: int
    """Good verdicts in the first seconds."""
    codes: Mapping[str, int]
    """Of the errors that came of the silent host."""

    @property
    def rate(self) -> float:
        return self.good / self.seconds

    @property
    def later_rate(self) -> float:
        """Without the first seconds; nan where there is nothing behind them."""
        later = self.seconds - _FIRST_SECONDS
        return (self.good - self.first) / later if later > 0 else math.nan


@contextmanager
def silent_host() -> Iterator[int]:
    """Its port. The system takes the connections, and nobody ever looks at them."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        yield listening.getsockname()[1]


async def _round(on: Stage, good: Mapping[str, bytes], silent: Mapping[str, bytes]) -> Round:
    mixed = chain.from_iterable(zip(silent.items(), good.items(), strict=True))
    requests = dict(mixed if silent else good.items())
    async with Client(on) as client:
        publishing = asyncio.create_task(client.publish(on.topics.requests_topic, requests))
        await client.until_answered(requests)
        await publishing
        client.all_ok(good)
        at = sorted(client.answered_at[name] for name in good)
        codes = Counter(_code(client, name) for name in silent)
    return Round(
        good=len(good),
        seconds=at[-1] - at[0],
        first=sum(time < at[0] + _FIRST_SECONDS for time in at),
        codes=codes,
    )


def _code(client: Client, name: str) -> str:
    answer = client.answers[name]
    assert isinstance(answer, Verdict) and answer.error is not None, f"{name}: {answer}"
    return answer.error.code.value


def measure(encoder: str, requests: int, rounds: int) -> list[tuple[Round, Round]]:
    """Alone, and among those to the silent host; ``requests`` of each."""
    found = []
    with (
        image_server(_IMAGES, delay_seconds=_DELAY_SECONDS) as one,
        image_server(_IMAGES, delay_seconds=_DELAY_SECONDS) as other,
        silent_host() as nobody,
    ):
        numbers = range(requests // 2)
        pairs = zip(*(image_requests(port, numbers).items() for port in (one, other)), strict=True)
        good = dict(chain.from_iterable(pairs))
        silent = image_requests(nobody, range(len(good)))

        def run(silent: Mapping[str, bytes]) -> Round:
            with service(encoder, one, other, nobody) as on:
                return asyncio.run(_round(on, good, silent))

        for _ in range(rounds):
            found.append((run({}), run(silent)))
    return found


def table(found: Sequence[tuple[Round, Round]]) -> str:
    lines = [
        f"| round | alone, images/s | with as many to a silent host | ratio | "
        f"after {_FIRST_SECONDS:g} s | good in those | of the silent host |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, (alone, mixed) in enumerate(found, 1):
        codes = ", ".join(f"{count} {code}" for code, count in sorted(mixed.codes.items()))
        lines.append(
            f"| {number} | {alone.rate:.1f} | {mixed.rate:.1f} | {mixed.rate / alone.rate:.2f} "
            f"| {mixed.later_rate / alone.later_rate:.2f} "
            f"| {mixed.first} of {alone.first} | {codes} |"
        )
    ratio = statistics.median(mixed.rate / alone.rate for alone, mixed in found)
    return "\n".join([*lines, "", f"The median of the ratios: {ratio:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hosts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute: counts, no times")
    parser.add_argument("--encoder", choices=ENCODERS, default=ENCODERS[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6000, help="to the hosts that answer")
    asked = parser.parse_args()
    rounds, requests = (1, 100) if asked.quick else (asked.rounds, asked.requests)
    print(table(measure(asked.encoder, requests, rounds)))


if __name__ == "__main__":
    main()
