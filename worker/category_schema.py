"""What the policy language says of a category, as JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from worker.calibration_yaml import FITTED, LARGEST, MAX_BANDS, MAX_POINTS
from worker.category_yaml import MAX_EXCEPTIONS, MAX_FRAMES
from worker.policy import Aggregate, Method, Mode
from worker.schema_values import (
    Schema,
    choice,
    digest,
    integer,
    label,
    list_of,
    map_of,
    number,
    object_of,
    path_below,
    prompts_of,
    text,
    weight,
    whole,
)
from worker.yaml_texts import LABEL


def category_schema() -> Schema:
    schema = object_of(
        "One thing to look for.",
        {
            "id": label("Its name in verdicts, such as `weapons.firearm`."),
            "parent": label("The category above it; by itself, its id before the last dot."),
            "description": text("For people."),
            "prompts": prompts_of("Texts that speak for the category."),
            "contrast": prompts_of("Texts that speak against it; what looks alike belongs here."),
            "exceptions": list_of(
                "Concepts that dampen the category where they outweigh its contrasts.",
                _exception(),
                MAX_EXCEPTIONS,
            ),
            "aggregate": choice(
                "How the logits of several texts become one. `logmeanexp` is a soft maximum that "
                "does not grow with their number.",
                get_args(Aggregate),
                "logmeanexp",
            ),
            "head": _head(),
            "calibration": _calibration(),
            "review": _threshold("Probability from which an image is reviewed."),
            "block": _threshold(
                "Probability from which an image is blocked, if the category is calibrated."
            ),
            "severity": {
                **map_of(
                    "Names for probabilities, each from the one it gives, from the lowest up.",
                    number("Probability from which the band has this name.", 0, 1),
                ),
                "propertyNames": {"pattern": whole(LABEL.pattern), "maxLength": 64},
                "maxProperties": MAX_BANDS,
                "examples": [{"low": 0.3, "medium": 0.6, "high": 0.9}],
            },
            "frames": object_of(
                "Which frames of an animation decide.",
                {
                    "at_least": {
                        **integer("So many frames must show it.", 1, MAX_FRAMES),
                        "default": 1,
                    }
                },
                ("at_least",),
            ),
            "mode": choice(
                "`enforce` decides; `shadow` only says in verdicts what it would do; `off` is not "
                "looked for.",
                get_args(Mode),
                "enforce",
            ),
            "block_uncalibrated": {
                "description": "Let it block without a calibration for its present wording.",
                "type": "boolean",
                "default": False,
            },
        },
        ("id",),
    )
    schema["allOf"] = [
        {"anyOf": [{"required": ["prompts"]}, {"required": ["head"]}]},
        {"anyOf": [{"required": ["review"]}, {"required": ["block"]}]},
    ]
    return schema


def _exception() -> Schema:
    weighted = object_of(
        "A concept in several texts.",
        {
            "prompts": prompts_of("Texts that speak for leniency."),
            "weight": weight("What its lead over the contrasts is multiplied with."),
        },
        ("prompts",),
    )
    return {"oneOf": [text("A concept that speaks for leniency."), weighted]}


def _head() -> Schema:
    file = "A file that `imagewarden policy fit-head` wrote, as a path from the policy's folder."
    blended = object_of(
        "A head, and what it counts beside the prompts.",
        {
            "file": path_below(file),
            "weight": number("Its share of the margin; the prompts have the rest.", 0, 1),
        },
        ("file",),
    )
    return {
        "description": "A classifier fitted to labelled images, in place of prompts or beside "
        "them.",
        "oneOf": [path_below(file), blended],
    }


def _calibration() -> Schema:
    schema = object_of(
        "From margins to probabilities; `imagewarden policy calibrate` writes it.",
        {
            "method": choice("How it was fitted.", get_args(Method)),
            "for": digest(
                "Digest of all that the margin depends on. Edit any of it and this is void."
            ),
            "scale": {
                **number("Factor on the margin.", 0, LARGEST),
                "exclusiveMinimum": 0,
            },
            "bias": number("What is then added.", -LARGEST, LARGEST),
            "points": {
                **list_of(
                    "Pairs of a margin and its probability, both rising.",
                    {
                        "type": "array",
                        "prefixItems": [
                            {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
                            {"type": "number", "minimum": 0, "maximum": 1},
                        ],
                        "items": False,
                        "minItems": 2,
                    },
                    MAX_POINTS,
                ),
                "minItems": 2,
            },
            "data": digest("Digest of the labelled images that it was fitted on."),
            "positives": integer("How many of them show the category.", 0, 2**53),
            "negatives": integer("How many of them do not.", 0, 2**53),
            "prevalence": {
                **number("Share of live traffic that shows the category.", 0, 1),
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
            },
            "auroc": number("Area under the ROC curve.", 0, 1),
            "ece": number("Expected calibration error on held-out images.", 0, 1),
            "ece_interval": list_of(
                "Its 95 % interval.", {"type": "number", "minimum": 0, "maximum": 1}, 2
            ),
            "held_out": text("Which images it was measured on."),
            "date": {
                "description": "When it was fitted.",
                "type": "string",
                "pattern": r"^\d{4}-\d{2}-\d{2}$",
            },
        },
        ("method", "for"),
    )
    schema["allOf"] = [_method(method, needed) for method, needed in FITTED.items()]
    return schema


def _method(method: Method, needed: Sequence[str]) -> Schema:
    # a temperature may have a bias, which a prevalence gives it
    allowed = {*needed, "bias"} if method == "temperature" else {*needed}
    return {
        "if": {"properties": {"method": {"const": method}}, "required": ["method"]},
        "then": {
            "required": list(needed),
            "properties": dict.fromkeys(sorted({"scale", "bias", "points"} - allowed), False),
        },
    }


def _threshold(description: str) -> Schema:
    rates = {
        "fpr": "Of the images that do not show it, at most this share is to reach the threshold.",
        "recall": "Of the images that show it, at least this share is to reach the threshold.",
        "precision": "Of the images that reach the threshold, at least this share is to show it. "
        "Needs a `prevalence`.",
    }
    target = object_of(
        "What `imagewarden policy calibrate` solves the value for.",
        {
            name: {**number(meaning, 0, 1), "exclusiveMinimum": 0, "exclusiveMaximum": 1}
            for name, meaning in rates.items()
        },
    )
    target |= {"minProperties": 1, "maxProperties": 1}
    solved = object_of(
        "A threshold that labelled images decide.",
        {"value": number(description, 0, 1), "target": target},
    )
    solved["minProperties"] = 1
    return {"description": description, "oneOf": [number(description, 0, 1), solved]}
