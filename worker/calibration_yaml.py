"""The numbers of a category in a policy file: its calibration, thresholds and severity bands."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final, get_args

from worker.policy import Calibration, Method, SeverityBand, Target, Targets, Thresholds
from worker.yaml_texts import LABEL, day, digest
from worker.yaml_values import Located

MAX_POINTS: Final = 1000
MAX_BANDS: Final = 16
LARGEST: Final = 1e6  # of what is multiplied with or added to a margin
FITTED: Final[Mapping[Method, tuple[str, ...]]] = {
    "platt": ("scale", "bias"),
    "isotonic": ("points",),
    "temperature": ("scale",),
}
"""What a method needs; a temperature may have a bias, which a prevalence gives it."""


def calibration_of(at: Located) -> Calibration | None:
    if not at.present:
        return None
    of = at.fields(
        required=("method", "for"),
        optional=(
            *("scale", "bias", "points"),
            *("data", "positives", "negatives", "prevalence"),
            *("auroc", "ece", "ece_interval", "held_out", "date"),
        ),
    )
    method = of["method"].choice(get_args(Method))
    for key in FITTED[method]:
        if isinstance(at.value, Mapping) and not of[key].present:
            at.refuse(f"{at.name} has no `{key}`; add it")
    for key in {"scale", "bias", "points"}.difference(FITTED[method]):
        if of[key].present and (method, key) != ("temperature", "bias"):
            of[key].refuse(f"{of[key].name} means nothing to the method {method}; remove it")
    _check_evidence(of)
    scale = of["scale"].number(0, LARGEST)
    bias = of["bias"].number(-LARGEST, LARGEST)
    if scale == 0:
        of["scale"].refuse("`scale` must be above 0; calibrate again with better prompts")
    return Calibration(
        fitted_for=digest(of["for"]),
        method=method,
        scale=scale or 1.0,
        bias=bias or 0.0,
        points=_points(of["points"]) if method == "isotonic" else (),
        fitted_on=day(of["date"]),
    )


def _check_evidence(of: Mapping[str, Located]) -> None:
    """It is left in the file for people, all but the date."""
    digest(of["data"])
    of["positives"].integer(0, 2**53, default=0)
    of["negatives"].integer(0, 2**53, default=0)
    of["auroc"].number(0, 1)
    of["ece"].number(0, 1)
    for end in of["ece_interval"].items(at_most=2):
        end.number(0, 1)
    of["held_out"].text()
    if of["prevalence"].number(0, 1) in (0.0, 1.0):
        of["prevalence"].refuse("`prevalence` is a share of live traffic above 0 and below 1")


def _points(at: Located) -> tuple[tuple[float, float], ...]:
    points: list[tuple[float, float]] = []
    items = at.items(at_most=MAX_POINTS)
    for item in items:
        pair = item.items(at_most=2)
        if len(pair) == 1:
            item.refuse(f"{item.name} is one number; write [margin, probability]")
        elif pair:
            margin, probability = pair[0].number(-LARGEST, LARGEST), pair[1].number(0, 1)
            if margin is not None and probability is not None:
                points.append((margin, probability))
    if len(items) == 1:
        at.refuse(f"{at.name} is a single one; write two or more")
    if any(there[0] <= here[0] or there[1] < here[1] for here, there in pairwise(points)):
        at.refuse(
            f"{at.name} must have margins that rise and probabilities that never fall; calibrate "
            f"again"
        )
    return tuple(points)


# ---------------------------------------------------------------- thresholds


def thresholds_of(of: Mapping[str, Located], unsolved: bool) -> tuple[Thresholds, Targets]:
    """``review`` and ``block`` of a category, whose values may be missing if ``unsolved``."""
    calibration = of["calibration"].value
    has_prevalence = isinstance(calibration, Mapping) and "prevalence" in calibration
    review, review_target = _threshold(of["review"], has_prevalence, unsolved)
    block, block_target = _threshold(of["block"], has_prevalence, unsolved)
    return checked_thresholds(of, review, block), Targets(review_target, block_target)


def checked_thresholds(
    of: Mapping[str, Located], review: float | None, block: float | None
) -> Thresholds:
    written = of["review"] if of["review"].present else of["block"]
    if written.present and review is not None and block is not None and review > block:
        written.refuse(
            f"`review` ({review:g}) is above `block` ({block:g}), so nothing would be reviewed; "
            f"lower `review` or raise `block`"
        )
    return Thresholds(review, block)


def _threshold(
    at: Located, has_prevalence: bool, unsolved: bool
) -> tuple[float | None, Target | None]:
    """A number, or ``{value, target}`` where the target says how the value was solved."""
    if not isinstance(at.value, Mapping):
        return at.number(0, 1), None
    of = at.fields(optional=("value", "target"))
    target = _target(of["target"], has_prevalence or unsolved)
    if not of["value"].present and not unsolved:
        if of["target"].present:
            at.refuse(
                f"{at.name} has a `target` and no `value`; run `imagewarden policy calibrate` to "
                f"solve it"
            )
        else:
            at.refuse(f"{at.name} has no `value`; add it")
    elif not of["value"].present and not of["target"].present:
        at.refuse(f"{at.name} has neither `value` nor `target`; add one")
    return of["value"].number(0, 1), target


def _target(at: Located, has_prevalence: bool) -> Target | None:
    of = at.fields(optional=("fpr", "precision", "recall"))
    targets = []
    for rate in ("fpr", "precision", "recall"):
        value = of[rate].number(0, 1)
        if value in (0.0, 1.0):
            of[rate].refuse(
                f"no number of images can show a rate of {value:g}; write one above 0 and below 1"
            )
        elif value is not None:
            targets.append(Target(rate, value))
    if sum(rate.present for rate in of.values()) > 1:
        at.refuse("a `target` is one of fpr, precision, recall; keep one")
    if of["precision"].present and not has_prevalence:
        of["precision"].refuse(
            "a precision target means nothing without `prevalence` in `calibration`; add it"
        )
    return targets[0] if targets else None


def severity_of(at: Located) -> tuple[SeverityBand, ...]:
    bands: list[SeverityBand] = []
    entries = at.entries()
    if len(entries) > MAX_BANDS:
        at.refuse(f"{at.name} has {len(entries)} bands; at most {MAX_BANDS} are allowed")
        return ()
    for key, value in entries:
        name = str(key.value)
        if not LABEL.fullmatch(name) or len(name) > 64:
            key.refuse(f"the band {name[:80]!r} needs a plain name, such as low, medium or high")
        if (probability := value.number(0, 1)) is None:
            continue
        if bands and probability <= bands[-1].probability:
            value.refuse(
                f"`{name}` ({probability:g}) is not above `{bands[-1].name}` "
                f"({bands[-1].probability:g}); write the bands from the lowest to the highest"
            )
        bands.append(SeverityBand(name, probability))
    return tuple(bands)
