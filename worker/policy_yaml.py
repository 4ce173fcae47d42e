"""The language that policies are written in: a YAML file to a ``Policy``, or to all its problems.

Every key is known: one that does nothing yet is refused, and so is one that is misspelt, because
an ignored key in a policy is a rule that its author believes in and nobody follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Final, get_args

from worker.errors import Misconfigured
from worker.policy import (
    Aggregate,
    Calibration,
    Category,
    Decision,
    Mode,
    Override,
    Policy,
    Prompt,
    Thresholds,
)
from worker.types import FramePlan, Views
from worker.yaml_values import MAX_BYTES, Located, Problem, read_yaml

UNSUPPORTED: Final[Mapping[str, tuple[str, ...]]] = {
    "policy": ("limits", "tests", "lists"),
    "category": ("severity", "exceptions", "head"),
    "calibration.method": ("isotonic", "temperature"),
    "review and block": ("target without value",),
}
"""What the language has a place for and the worker does not do yet, by where it stands."""

MAX_CATEGORIES: Final = 256
MAX_PROMPTS: Final = 256  # a list; anchors repeat lists for free, so the size of a file is no bound
MAX_FRAMES: Final = 64
LABEL: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class InvalidPolicy(Misconfigured):
    """A policy file is refused. ``problems`` holds everything that is wrong with it, in the order
    of the file; the message has one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load_policy(path: Path) -> Policy:
    """Read and validate a policy file. Raises ``InvalidPolicy``."""
    return parse_policy(read_policy(path), str(path))


def read_policy(path: Path) -> bytes:
    """The bytes of a policy file, or of one that is too large a little more than is allowed.
    Raises ``InvalidPolicy``."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check its name and its rights"
        raise InvalidPolicy([Problem(str(path), 1, 1, reason)]) from error


def parse_policy(raw: bytes, path: str) -> Policy:
    """Validate the content of a policy file; ``path`` is for messages. Raises ``InvalidPolicy``."""
    problems: list[Problem] = []
    policy = _policy(read_yaml(raw, path, "the policy", problems))
    if problems:
        raise InvalidPolicy(problems)
    return policy


def _policy(root: Located) -> Policy:
    of = root.fields(
        required=("version", "id", "model", "categories"),
        optional=("templates", "contrast", "on_error", "views", "max_frames", "tenants"),
        unsupported=UNSUPPORTED["policy"],
    )
    contrast = _prompts(of["contrast"])
    categories = _categories(of["categories"], contrast)
    return Policy(
        version=of["version"].integer(1, 2**31 - 1, default=1),
        id=_label(of["id"]),
        model=of["model"].text(),
        templates=_templates(of["templates"]),
        on_error=of["on_error"].choice((Decision.REVIEW, Decision.ALLOW, Decision.BLOCK)),
        plan=FramePlan(
            max_frames=of["max_frames"].integer(1, MAX_FRAMES, default=FramePlan().max_frames),
            views=of["views"].choice(get_args(Views)),
        ),
        categories=categories,
        overrides=_overrides(of["tenants"], categories),
    )


def _templates(at: Located) -> tuple[str, ...]:
    templates = set()
    for item in at.items(at_most=MAX_PROMPTS):
        template = item.text()
        if template and template.count("{}") != 1:
            item.refuse(f"{template!r} must contain {{}} exactly once, where the prompt goes")
        templates.add(template)
    return tuple(sorted(templates)) or ("{}",)


def _prompts(at: Located) -> dict[str, Prompt]:
    """By text: one that is written twice is one prompt."""
    prompts: dict[str, Prompt] = {}
    for item in at.items(at_most=MAX_PROMPTS):
        weight: float | None = 1.0
        text_at = item
        if isinstance(item.value, Mapping):
            of = item.fields(required=("text",), optional=("weight",))
            text_at = of["text"]
            weight = of["weight"].number(0.001, 1000) if of["weight"].present else 1.0
        if (text := text_at.text()) and weight is not None:
            prompt = prompts.setdefault(text, Prompt(text, weight))
            if prompt.weight != weight:
                item.refuse(f"{text!r} has two weights in this list; write it once")
    return prompts


def _categories(at: Located, shared: Mapping[str, Prompt]) -> tuple[Category, ...]:
    lines: dict[str, int] = {}
    categories = tuple(_category(item, shared, lines) for item in at.items(at_most=MAX_CATEGORIES))
    if categories and all(category.mode == "off" for category in categories):
        at.refuse("every category is off, so every image would be allowed; turn one on")
    return categories


def _category(at: Located, shared: Mapping[str, Prompt], lines: dict[str, int]) -> Category:
    """``lines`` holds the line of each category so far, by id."""
    of = at.fields(
        required=("id", "prompts"),
        optional=(
            *("parent", "description", "contrast", "aggregate", "calibration"),
            *("review", "block", "mode", "block_uncalibrated"),
        ),
        unsupported=UNSUPPORTED["category"],
    )
    label = _label(of["id"])
    if label in lines:
        of["id"].refuse(
            f"the category `{label}` is defined on line {lines[label]} and again on line "
            f"{of['id'].line}; rename or remove one"
        )
    elif label:
        lines[label] = of["id"].line
    prompts = _prompts(of["prompts"])
    contrast = {**shared, **_prompts(of["contrast"])}
    aggregate = of["aggregate"].choice(get_args(Aggregate))
    calibration = _calibration(of["calibration"])
    if prompts and not contrast:
        of["prompts"].refuse(
            "nothing speaks against these; add a `contrast`, here or to the policy"
        )
    if both := sorted(prompts.keys() & contrast.keys()):
        of["prompts"].refuse(f"{both[0]!r} is also a contrast of `{label}`; remove one of the two")
    if aggregate == "max" and any(p.weight != 1 for p in (*prompts.values(), *contrast.values())):
        of["aggregate"].refuse("`max` knows no weights; remove them or use logmeanexp")
    if label and not (of["review"].present or of["block"].present):
        of["id"].refuse(f"`{label}` has neither `review` nor `block` and could do nothing; add one")
    has_prevalence = isinstance(of["calibration"].value, Mapping) and (
        "prevalence" in of["calibration"].value
    )
    review = _threshold(of["review"], has_prevalence)
    block = _threshold(of["block"], has_prevalence)
    return Category(
        id=label,
        parent=_label(of["parent"]) or label.rpartition(".")[0] or None,
        description=of["description"].text(),
        prompts=_sorted(prompts),
        contrast=_sorted(contrast),
        aggregate=aggregate,
        calibration=calibration,
        thresholds=_thresholds(of, review, block),
        mode=of["mode"].choice(get_args(Mode)),
        block_uncalibrated=of["block_uncalibrated"].flag(),
    )


def _calibration(at: Located) -> Calibration | None:
    if not at.present:
        return None
    of = at.fields(
        required=("method", "scale", "bias", "for"),
        optional=("data", "positives", "negatives", "prevalence", "ece", "date"),
    )
    if (method := of["method"]).value in UNSUPPORTED["calibration.method"]:
        method.refuse(f"the method `{method.value}` is not supported yet; write platt")
    else:
        method.choice(("platt",))
    # evidence: checked, and left in the file for people
    _digest(of["data"])
    of["positives"].integer(0, 2**53, default=0)
    of["negatives"].integer(0, 2**53, default=0)
    of["ece"].number(0, 1)
    if of["prevalence"].number(0, 1) in (0.0, 1.0):
        of["prevalence"].refuse("`prevalence` is a share of live traffic above 0 and below 1")
    _date(of["date"])
    scale = of["scale"].number(0, 1e6)
    bias = of["bias"].number(-1e6, 1e6)
    if scale == 0:
        of["scale"].refuse("`scale` must be above 0; calibrate again with better prompts")
    return Calibration(_digest(of["for"]), scale=scale or 1.0, bias=bias or 0.0)


def _thresholds(of: Mapping[str, Located], review: float | None, block: float | None) -> Thresholds:
    written = of["review"] if of["review"].present else of["block"]
    if written.present and review is not None and block is not None and review > block:
        written.refuse(
            f"`review` ({review:g}) is above `block` ({block:g}), so nothing would be reviewed; "
            f"lower `review` or raise `block`"
        )
    return Thresholds(review, block)


def _threshold(at: Located, has_prevalence: bool) -> float | None:
    """A number, or ``{value, target}`` where the target says how the value was solved."""
    if not isinstance(at.value, Mapping):
        return at.number(0, 1)
    of = at.fields(optional=("value", "target"))
    if of["target"].present:
        if not of["value"].present:
            of["target"].refuse(
                f"{at.name}: a `target` without a `value` is not supported yet; write the `value`"
            )
        rates = of["target"].fields(optional=("fpr", "precision", "recall"))
        written = [rate for rate in rates.values() if rate.present]
        for rate in written:
            rate.number(0, 1)
        if len(written) > 1:
            of["target"].refuse("a `target` is one of fpr, precision, recall; keep one")
        if rates["precision"].present and not has_prevalence:
            rates["precision"].refuse(
                "a precision target means nothing without `prevalence` in `calibration`; add it"
            )
    elif not of["value"].present:
        at.refuse(f"{at.name} has no `value`; add it")
    return of["value"].number(0, 1)


def _overrides(at: Located, categories: Iterable[Category]) -> tuple[Override, ...]:
    known = {category.id: category for category in categories if category.id}
    overrides = []
    for tenant_at, by_category in at.entries():
        for category_at, thresholds in by_category.entries():
            of = thresholds.fields(optional=("review", "block"))
            if (category := known.get(str(category_at.value))) is None:
                category_at.refuse(
                    f"`{tenant_at.value}` overrides the category `{category_at.value}`, which does "
                    f"not exist; use one of: {', '.join(known)}"
                )
                continue
            review = of["review"].number(0, 1)
            block = of["block"].number(0, 1)
            merged = _thresholds(
                of,
                category.thresholds.review if review is None else review,
                category.thresholds.block if block is None else block,
            )
            overrides.append(Override(str(tenant_at.value), category.id, merged))
    return tuple(sorted(overrides, key=lambda override: (override.tenant, override.category)))


def _sorted(prompts: Mapping[str, Prompt]) -> tuple[Prompt, ...]:
    return tuple(prompts[text] for text in sorted(prompts))


def _label(at: Located) -> str:
    if (text := at.text()) and (len(text) > 64 or not LABEL.fullmatch(text)):
        at.refuse(
            f"{at.name} is {text[:80]!r}; write at most 64 letters and digits, in parts joined by "
            f"`.`, `_` or `-`"
        )
    return text


def _digest(at: Located) -> str:
    if (text := at.text()) and not DIGEST.fullmatch(text):
        at.refuse(f'{at.name} is {text[:80]!r}; write "sha256:" and 64 hexadecimal digits')
    return text


def _date(at: Located) -> None:
    if isinstance(at.value, date) or not (text := at.text()):
        return
    try:
        date.fromisoformat(text)
    except ValueError:
        at.refuse(f"{at.name} is {text[:80]!r}; write a date as YYYY-MM-DD")
