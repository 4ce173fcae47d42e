"""A category in a policy file: what speaks for it, what against it, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from worker.calibration_yaml import calibration_of, severity_of, thresholds_of
from worker.policy import Aggregate, Category, Dampener, Head, Mode, Prompt
from worker.policy_files import PolicyFiles
from worker.yaml_texts import label
from worker.yaml_values import Located

MAX_PROMPTS: Final = 256  # a list; anchors repeat lists for free, so the size of a file is no bound
MAX_EXCEPTIONS: Final = 64
MAX_FRAMES: Final = 64
WEIGHTS: Final = (0.001, 1000)

Texts = Mapping[str, Prompt]


@dataclass(frozen=True, slots=True)
class Around:
    """What a category is read among: the policy's contrasts, its frames, the files beside it, and
    the line of each category so far, by id."""

    contrast: Texts
    max_frames: int
    files: PolicyFiles
    unsolved: bool
    lines: dict[str, int] = field(default_factory=dict)


def prompts_of(at: Located) -> dict[str, Prompt]:
    """By text: one that is written twice is one prompt."""
    prompts: dict[str, Prompt] = {}
    for item in at.items(at_most=MAX_PROMPTS):
        weight: float | None = 1.0
        text_at = item
        if isinstance(item.value, Mapping):
            of = item.fields(required=("text",), optional=("weight",))
            text_at = of["text"]
            weight = of["weight"].number(*WEIGHTS) if of["weight"].present else 1.0
        if (text := text_at.text()) and weight is not None:
            prompt = prompts.setdefault(text, Prompt(text, weight))
            if prompt.weight != weight:
                item.refuse(f"{text!r} has two weights in this list; write it once")
    return prompts


def category_of(at: Located, around: Around) -> Category:
    of = at.fields(
        required=("id",),
        optional=(
            *("parent", "description", "prompts", "contrast", "exceptions", "aggregate", "head"),
            *("calibration", "review", "block", "severity", "frames", "mode"),
            "block_uncalibrated",
        ),
    )
    id_ = label(of["id"])
    _check_id(of["id"], id_, around.lines)
    prompts = prompts_of(of["prompts"])
    exceptions = _exceptions(of["exceptions"])
    contrast = {**around.contrast, **prompts_of(of["contrast"])}
    aggregate = of["aggregate"].choice(get_args(Aggregate))
    if isinstance(at.value, Mapping) and not (of["prompts"].present or of["head"].present):
        at.refuse(f"{at.name} has neither `prompts` nor a `head`; add one")
    _check_contrast(of, contrast)
    _check_sides(of, id_, prompts, contrast, exceptions)
    if aggregate == "max":
        _check_unweighted(of["aggregate"], (prompts, contrast, *(e.prompts for e in exceptions)))
    if id_ and not (of["review"].present or of["block"].present):
        of["id"].refuse(f"`{id_}` has neither `review` nor `block` and could do nothing; add one")
    thresholds, targets = thresholds_of(of, around.unsolved)
    return Category(
        id=id_,
        parent=label(of["parent"]) or id_.rpartition(".")[0] or None,
        description=of["description"].text(),
        prompts=_sorted(prompts),
        # a head alone is held against nothing
        contrast=_sorted(contrast) if prompts or exceptions else (),
        aggregate=aggregate,
        calibration=calibration_of(of["calibration"]),
        thresholds=thresholds,
        mode=of["mode"].choice(get_args(Mode)),
        block_uncalibrated=of["block_uncalibrated"].flag(),
        exceptions=tuple(
            sorted(
                (Dampener(_sorted(e.prompts), e.weight) for e in exceptions),
                key=lambda dampener: [prompt.text for prompt in dampener.prompts],
            )
        ),
        head=_head(of["head"], of["prompts"].present, around.files),
        severity=severity_of(of["severity"]),
        at_least_frames=_at_least_frames(of["frames"], around.max_frames),
        targets=targets,
    )


def _sorted(prompts: Texts) -> tuple[Prompt, ...]:
    return tuple(prompts[text] for text in sorted(prompts))


# ---------------------------------------------------------------- single keys


@dataclass(frozen=True, slots=True)
class _Exception:
    at: Located
    prompts: Texts
    weight: float


def _exceptions(at: Located) -> list[_Exception]:
    """An item is a text, or ``{prompts, weight}``."""
    exceptions = []
    for item in at.items(at_most=MAX_EXCEPTIONS):
        if not isinstance(item.value, Mapping):
            if text := item.text():
                exceptions.append(_Exception(item, {text: Prompt(text)}, 1.0))
            continue
        of = item.fields(required=("prompts",), optional=("weight",))
        weight = of["weight"].number(*WEIGHTS)
        if prompts := prompts_of(of["prompts"]):
            exceptions.append(_Exception(item, prompts, 1.0 if weight is None else weight))
    return exceptions


def _head(at: Located, beside_prompts: bool, files: PolicyFiles) -> Head | None:
    """A path, or ``{file, weight}``."""
    if not at.present:
        return None
    if not isinstance(at.value, Mapping):
        if beside_prompts and isinstance(at.value, str):
            at.refuse(
                f"{at.name} stands beside `prompts`; say what it counts, as in "
                f"{{file: {at.text()}, weight: 0.7}}, or remove the prompts"
            )
        return files.head(at, weight=1.0)
    of = at.fields(required=("file",), optional=("weight",))
    weight = of["weight"].number(0, 1)
    if beside_prompts and not of["weight"].present:
        at.refuse(f"{at.name} stands beside `prompts`; say what it counts, as in `weight: 0.7`")
    elif beside_prompts and weight in (0.0, 1.0):
        of["weight"].refuse(
            f"with a weight of {weight:g} either the head or the prompts count for nothing; write "
            f"one above 0 and below 1, or remove one of the two"
        )
    elif not beside_prompts and weight not in (None, 1.0):
        of["weight"].refuse("there are no `prompts` to share with; add some, or remove the weight")
    return files.head(of["file"], weight=1.0 if weight is None else weight)


def _at_least_frames(at: Located, max_frames: int) -> int:
    if not at.present:
        return 1
    of = at.fields(required=("at_least",))
    frames = of["at_least"].integer(1, MAX_FRAMES, default=1)
    if frames > max_frames:
        of["at_least"].refuse(
            f"{frames} frames can never show it, as `max_frames` is {max_frames}; lower one or "
            f"raise the other"
        )
    return frames


# ---------------------------------------------------------------- what must not be together


def _check_id(at: Located, id_: str, lines: dict[str, int]) -> None:
    if id_ in lines:
        at.refuse(
            f"the category `{id_}` is defined on line {lines[id_]} and again on line {at.line}; "
            f"rename or remove one"
        )
    elif id_:
        lines[id_] = at.line


def _check_contrast(of: Mapping[str, Located], contrast: Texts) -> None:
    for key in ("prompts", "exceptions"):
        if of[key].present and not contrast:
            of[key].refuse("nothing speaks against these; add a `contrast`, here or to the policy")
    if of["head"].present and not (of["prompts"].present or of["exceptions"].present):
        for key in ("contrast", "aggregate"):
            if of[key].present:
                of[key].refuse(f"{of[key].name} means nothing to a head alone; remove it")


def _check_sides(
    of: Mapping[str, Located],
    id_: str,
    prompts: Texts,
    contrast: Texts,
    exceptions: Iterable[_Exception],
) -> None:
    """No text may stand on two sides."""
    if both := sorted(prompts.keys() & contrast.keys()):
        of["prompts"].refuse(f"{both[0]!r} is also a contrast of `{id_}`; remove one of the two")
    seen = {**dict.fromkeys(contrast, "a contrast"), **dict.fromkeys(prompts, "a prompt")}
    for exception in exceptions:
        for text in exception.prompts:
            if text in seen:
                exception.at.refuse(
                    f"{text!r} is also {seen[text]} of `{id_}`; remove one of the two"
                )
            seen[text] = "in another exception"


def _check_unweighted(at: Located, lists: Iterable[Texts]) -> None:
    if any(prompt.weight != 1 for texts in lists for prompt in texts.values()):
        at.refuse("`max` knows no weights; remove them or use logmeanexp")
