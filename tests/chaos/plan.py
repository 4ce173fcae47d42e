"""What is done to the fleet and to what it stands on, and when: data, made of a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Each is undone by itself after its time."""

    KILL_WORKER = "worker killed (SIGKILL)"
    LEAVE = "worker leaves (SIGTERM), joins again"
    FREEZE_WORKER = "worker frozen past its session (SIGSTOP)"
    KILL_DECODER = "decoder child killed (SIGKILL)"
    KILL_BROKER = "broker killed (SIGKILL)"
    KILL_REDIS = "Redis killed (SIGKILL)"
    FREEZE_REDIS = "Redis frozen (SIGSTOP)"
    REFUSE_IMAGES = "image server refuses connections"
    STALL_IMAGES = "image server accepts, and never answers"
    DROP_IMAGES = "image server breaks off in the middle"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """``target`` is the number of a slot of the fleet or of a broker; 0 where there is one only.

    ``at_seconds`` is from the start of the plan, ``for_seconds`` until it is undone: a worker or
    server started again, going on, serving.
    """

    at_seconds: float
    kind: Kind
    target: int
    for_seconds: float


@dataclass(frozen=True, slots=True)
class Scale:
    """Of one delivery mode. ``slots`` of the fleet have a deterministic encoder and no torch;
    ``pocket`` adds one with the pocket model. The other numbers are how often each fault is."""

    seconds: float
    requests: int
    slots: int
    pocket: bool
    kills: int
    leaves: int
    frozen_workers: int
    decoder_kills: int
    brokers: Sequence[int]
    redis_kills: int
    frozen_redis: int
    image_faults: int


#: Both modes in 20 minutes on two cores that are not ours alone.
FULL = Scale(
    seconds=430.0,
    requests=8000,
    slots=4,
    pocket=True,
    kills=20,
    leaves=10,
    frozen_workers=2,
    decoder_kills=4,
    brokers=(0, 1, 2),
    redis_kills=2,
    frozen_redis=2,
    image_faults=2,
)

#: Both modes in 2 minutes.
SHORT = Scale(
    seconds=24.0,
    requests=500,
    slots=3,
    pocket=False,
    kills=3,
    leaves=1,
    frozen_workers=0,
    decoder_kills=1,
    brokers=(0,),
    redis_kills=1,
    frozen_redis=1,
    image_faults=1,
)

#: The shortest and the longest time until a fault is undone.
_FOR_SECONDS = {
    Kind.KILL_WORKER: (0.0, 2.0),
    Kind.LEAVE: (0.5, 4.0),
    Kind.FREEZE_WORKER: (9.0, 12.0),
    Kind.KILL_DECODER: (0.0, 0.0),
    Kind.KILL_BROKER: (5.0, 9.0),
    Kind.KILL_REDIS: (2.0, 5.0),
    Kind.FREEZE_REDIS: (2.0, 5.0),
    Kind.REFUSE_IMAGES: (2.0, 4.0),
    Kind.STALL_IMAGES: (3.0, 6.0),
    Kind.DROP_IMAGES: (2.0, 4.0),
}


def plan_of(scale: Scale, seed: int) -> tuple[Fault, ...]:
    """The faults in the order of their times."""
    chance = random.Random(seed)
    images = (Kind.REFUSE_IMAGES, Kind.STALL_IMAGES, Kind.DROP_IMAGES)
    faults = [
        *_spread(Kind.KILL_WORKER, _slots(scale, scale.kills, chance), scale, chance),
        *_spread(Kind.LEAVE, _slots(scale, scale.leaves, chance), scale, chance),
        *_spread(Kind.FREEZE_WORKER, _slots(scale, scale.frozen_workers, chance), scale, chance),
        *_spread(Kind.KILL_DECODER, _slots(scale, scale.decoder_kills, chance), scale, chance),
        *_spread(Kind.KILL_BROKER, scale.brokers, scale, chance),
        *_spread(Kind.KILL_REDIS, [0] * scale.redis_kills, scale, chance),
        *_spread(Kind.FREEZE_REDIS, [0] * scale.frozen_redis, scale, chance),
        *(
            fault
            for kind in images
            for fault in _spread(kind, [0] * scale.image_faults, scale, chance)
        ),
    ]
    return tuple(sorted(faults))


def _slots(scale: Scale, count: int, chance: random.Random) -> list[int]:
    """One after another in any order, so that none is spared."""
    slots = range(scale.slots + scale.pocket)
    order: list[int] = []
    while len(order) < count:
        order += chance.sample(slots, len(slots))
    return order[:count]


def _spread(
    kind: Kind, targets: Sequence[int], scale: Scale, chance: random.Random
) -> Iterator[Fault]:
    """Each somewhere in its own stretch of time, so that they do not all come at once."""
    stretch = scale.seconds / max(1, len(targets))
    for number, target in enumerate(targets):
        at, lasts = (number + chance.random()) * stretch, chance.uniform(*_FOR_SECONDS[kind])
        yield Fault(round(at, 1), kind, target, round(lasts, 1))
