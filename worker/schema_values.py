"""Kinds of values in a policy file, as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from worker.category_yaml import MAX_PROMPTS, WEIGHTS
from worker.yaml_texts import DIGEST, LABEL

Schema = dict[str, Any]

_BELOW: Final = r"^(?!/)(?!.*(^|/)\.\.(/|$))[^\\]*\S[^\\]*$"  # a path that stays in its folder


def object_of(description: str, properties: Schema, required: Sequence[str] = ()) -> Schema:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
        **({"required": list(required)} if required else {}),
    }


def map_of(description: str, values: Schema) -> Schema:
    """Names that the author chooses."""
    return {
        "description": description,
        "type": "object",
        "additionalProperties": values,
        "minProperties": 1,
    }


def list_of(description: str, items: Schema, at_most: int) -> Schema:
    return {
        "description": description,
        "type": "array",
        "items": items,
        "minItems": 1,
        "maxItems": at_most,
    }


def prompts_of(description: str) -> Schema:
    plain = text("What the image shows, in words.")
    weighted = object_of(
        "A text that counts more or less than its neighbours.",
        {"text": plain, "weight": weight("How much it counts.")},
        ("text",),
    )
    return list_of(description, {"oneOf": [plain, weighted]}, MAX_PROMPTS)


def weight(description: str) -> Schema:
    return {**number(description, *WEIGHTS), "default": 1}


def number(description: str, low: float, high: float) -> Schema:
    return {"description": description, "type": "number", "minimum": low, "maximum": high}


def integer(description: str, low: int, high: int) -> Schema:
    return {"description": description, "type": "integer", "minimum": low, "maximum": high}


def text(description: str) -> Schema:
    return {"description": description, "type": "string", "pattern": r"\S"}


def label(description: str) -> Schema:
    pattern = whole(LABEL.pattern)
    return {"description": description, "type": "string", "maxLength": 64, "pattern": pattern}


def digest(description: str) -> Schema:
    return {"description": description, "type": "string", "pattern": whole(DIGEST.pattern)}


def path_below(description: str) -> Schema:
    return {"description": description, "type": "string", "pattern": _BELOW}


def choice(description: str, options: Sequence[str], default: str | None = None) -> Schema:
    chosen: Mapping[str, str] = {} if default is None else {"default": default}
    return {"description": description, "enum": list(options), **chosen}


def whole(pattern: str) -> str:
    """A pattern for all of a text; those of JSON Schema are searched for in it."""
    return f"^(?:{pattern})$"
