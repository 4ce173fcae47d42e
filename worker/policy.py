"""What a policy is: frozen values, and the digests that say what a decision depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text that speaks for or against a category, and its weight among its neighbours."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling: probability = sigmoid(scale · margin + bias).

    ``fitted_for`` is the ``margin_digest`` of the margins it was fitted on (`for` in the file): for
    any other margins the calibration counts as none.
    """

    scale: float
    bias: float
    fitted_for: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities from which on an image is reviewed and blocked; None is never."""

    review: float | None
    block: float | None


@dataclass(frozen=True, slots=True)
class Category:
    """One thing to look for. ``prompts`` and ``contrast`` hold each text once, sorted, as their
    order means nothing; ``contrast`` includes the policy's."""

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


@dataclass(frozen=True, slots=True)
class Override:
    """The thresholds that a tenant has for a category, in place of the category's."""

    tenant: str
    category: str
    thresholds: Thresholds


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

    @cached_property
    def digest(self) -> str:
        """Of everything that can change a decision: not the name, version and descriptions, nor
        the evidence, comments and layout of the file. Equal digests decide alike."""
        content = asdict(self)
        del content["id"], content["version"]
        for category in content["categories"]:
            del category["description"]
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
        }
    )
