"""What comes of examining an image: its embedding, or the list that it is on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from worker.lists import Listed
from worker.types import CacheTier, Embedding, ImageFacts


@dataclass(frozen=True, slots=True)
class Examined:
    """An embedding, the tier that had it, and the milliseconds each stage took for it."""

    embedding: Embedding
    tier: CacheTier
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recognised:
    """An image that a list of hashes settles, so that the model is not asked; ``tier`` is the one
    that had its embedding all the same."""

    listed: Listed
    facts: ImageFacts
    tier: CacheTier
    timings_ms: dict[str, float] = field(default_factory=dict)


Outcome = Examined | Recognised


def shared(outcome: Outcome, joined: bool) -> Outcome:
    """What an asker is told who may have joined the flight of another."""
    if not joined:
        return outcome
    tier: CacheTier = "in_flight" if outcome.tier == "none" else outcome.tier
    return replace(outcome, tier=tier, timings_ms={})
