"""What a policy is: frozen values, and the digests that say what a decision depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import date
from enum import StrEnum
from functools import cached_property
from typing import Final, Literal

from worker.errors import Misconfigured
from worker.types import FramePlan, ModelInfo, digest_of

Aggregate = Literal["logmeanexp", "max", "mean"]
Mode = Literal["enforce", "shadow", "off"]


class Decision(StrEnum):
    """What is to happen to an image, or that nobody examined it."""

    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"
    UNDETERMINED = "undetermined"


#: How severe each decision on an image that was examined is.
SEVERITY: Final = {Decision.ALLOW: 0, Decision.REVIEW: 1, Decision.BLOCK: 2}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text that speaks for or against a category, and its weight among its neighbours."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Dampener:
    """A concept that speaks for leniency (`exceptions` in the file): where it outweighs the
    contrasts, its lead over them times ``weight`` is taken off the margin."""

    prompts: tuple[Prompt, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Head:
    """A logistic regression on embeddings: logit = vector · x + bias.

    ``weight`` is its share of the margin, 1 where the category has no prompts. ``digest`` is that
    of the file; ``space`` the ``ModelInfo.space`` of the embeddings it was fitted on.
    """

    file: str
    digest: str
    space: str
    vector: tuple[float, ...]
    bias: float
    weight: float = 1.0


Method = Literal["platt", "isotonic", "temperature"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """From a margin to a probability.

    ``platt`` and ``temperature``: sigmoid(scale · margin + bias), where temperature was fitted
    without a bias. ``isotonic``: linear between ``points`` of (margin, probability), both
    ascending, and level beyond them. ``fitted_for`` is the ``margin_digest`` of the margins it was
    fitted on (`for` in the file): for any other margins the calibration counts as none.
    ``fitted_on`` is the day, where the file says one; it is evidence, and decides nothing.
    """

    fitted_for: str
    method: Method = "platt"
    scale: float = 1.0
    bias: float = 0.0
    points: tuple[tuple[float, float], ...] = ()
    fitted_on: date | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities from which on an image is reviewed and blocked; None is never."""

    review: float | None
    block: float | None


@dataclass(frozen=True, slots=True)
class Target:
    """What a threshold is to reach: a rate (0..1) on labelled images, for ``policy calibrate`` to
    solve."""

    rate: Literal["fpr", "recall", "precision"]
    value: float


@dataclass(frozen=True, slots=True)
class Targets:
    review: Target | None = None
    block: Target | None = None


@dataclass(frozen=True, slots=True)
class SeverityBand:
    """A name for probabilities from ``probability`` on, up to the next band."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Category:
    """One thing to look for. ``prompts`` and ``contrast`` hold each text once, sorted, as their
    order means nothing; ``contrast`` includes the policy's. It has prompts, a head, or both.
    ``at_least_frames``: so many frames must reach a margin for it to count. ``severity`` ascends.
    """

    id: str
    parent: str | None
    description: str
    prompts: tuple[Prompt, ...]
    contrast: tuple[Prompt, ...]
    aggregate: Aggregate
    calibration: Calibration | None
    thresholds: Thresholds
    mode: Mode
    block_uncalibrated: bool
    exceptions: tuple[Dampener, ...] = ()
    head: Head | None = None
    severity: tuple[SeverityBand, ...] = ()
    at_least_frames: int = 1
    targets: Targets = Targets()


@dataclass(frozen=True, slots=True)
class Override:
    """The thresholds that a tenant has for a category, in place of the category's."""

    tenant: str
    category: str
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class HashList:
    """Images known by their PDQ hash. One within ``distance`` bits of ``hashes`` gets ``action``
    before the model is asked. ``digest`` is that of the hashes."""

    id: str
    action: Decision
    distance: int
    file: str
    digest: str
    hashes: frozenset[str]  #: 64 hexadecimal digits each


@dataclass(frozen=True, slots=True)
class BlockRate:
    """A brake: among at least ``min_requests`` distinct requests of one tenant within
    ``per_seconds``, a larger ``share`` blocked than this, and block becomes review."""

    share: float
    per_seconds: float
    min_requests: int


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """What the policy must say of an image; ``image`` is a path from the policy's folder."""

    image: str
    expect: Decision
    tenant: str | None = None


@dataclass(frozen=True)
class Policy:
    """A whole policy; ``worker.policy_yaml`` reads it from a file and refuses what is invalid."""

    version: int
    id: str
    model: str
    templates: tuple[str, ...]
    on_error: Decision
    plan: FramePlan
    categories: tuple[Category, ...]
    overrides: tuple[Override, ...]
    lists: tuple[HashList, ...] = ()
    max_block_rate: BlockRate | None = None
    tests: tuple[PolicyTest, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Of everything that can change a decision: not the name, version and descriptions, nor
        the evidence, comments and layout of the file. Equal digests decide alike."""
        # what a file holds is in its digest, and may be large
        lists = tuple(replace(one, file="", hashes=frozenset()) for one in self.lists)
        content = asdict(replace(self, id="", version=0, lists=lists, tests=()))
        for category in content["categories"]:
            del category["description"], category["targets"]
            if category["calibration"]:
                del category["calibration"]["fitted_on"]
            if category["head"]:
                del category["head"]["file"], category["head"]["vector"], category["head"]["bias"]
        for hash_list in content["lists"]:
            del hash_list["hashes"]  # JSON has no sets
        return digest_of(content)


def check_model(policy: Policy, info: ModelInfo) -> None:
    """Raises ``Misconfigured`` if the policy was written for another model than the one loaded."""
    if policy.model != info.name:
        raise Misconfigured(
            f"policy {policy.id!r} is written for the model {policy.model!r}, but {info.name!r} is "
            f"loaded, for which its scores mean nothing; load {policy.model!r}, or change `model` "
            f"in the policy and calibrate it again"
        )


def margin_digest(policy: Policy, category: Category, info: ModelInfo) -> str:
    """Digest of everything that the margin of an image depends on; a calibration is good for no
    other margins.

    The frame plan is part of it, since an image's margin is the highest of its rows. The precision
    is not: it moves a margin by far less than a calibration is sure of, and one calibration serves
    a fleet of unlike devices. Of the logit scale three digits count, as its own last digits depend
    on the precision too.
    """
    head = category.head
    what_few_have = {
        "exceptions": [asdict(concept) for concept in category.exceptions],
        "head": head and [head.digest, head.weight],
        "at_least_frames": category.at_least_frames if category.at_least_frames > 1 else None,
    }
    return digest_of(
        {
            "weights": info.weights_digest,
            "preprocess": info.preprocess.digest,
            "logit_scale": f"{info.logit_scale:.3g}",
            "plan": policy.plan.digest,
            "templates": policy.templates,
            "prompts": [asdict(prompt) for prompt in category.prompts],
            "contrast": [asdict(prompt) for prompt in category.contrast],
            "aggregate": category.aggregate,
            # left out where it is not used: what the language gains makes no calibration stale
            **{key: value for key, value in what_few_have.items() if value},
        }
    )
