"""The policy language as a JSON Schema (2020-12), for editors that complete, explain and check as
one types.

Bounds, names and forms are the reader's own. What a schema cannot say (that `review` is not above
`block`, that an id is there once, that a file exists) only `imagewarden policy check` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from worker.category_schema import category_schema
from worker.category_yaml import MAX_FRAMES, MAX_PROMPTS
from worker.policy import Decision
from worker.policy_yaml import MAX_CATEGORIES
from worker.rules_yaml import DISTANCE, MAX_DISTANCE, MAX_LISTS, MAX_TESTS
from worker.schema_values import (
    Schema,
    choice,
    integer,
    label,
    list_of,
    map_of,
    number,
    object_of,
    path_below,
    prompts_of,
    text,
    whole,
)
from worker.types import FramePlan, Views
from worker.yaml_texts import DURATION

_ACTIONS: Final = [decision.value for decision in Decision if decision != Decision.UNDETERMINED]


def policy_schema() -> Schema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An imagewarden policy",
        **object_of(
            "What to look for in images, and what to do about it.",
            {
                "version": integer(
                    "The policy's own version, shown in verdicts. Raise it at every edit.",
                    1,
                    2**31 - 1,
                ),
                "id": label("Its name, by which requests ask for it."),
                "model": text(
                    "The model it is written for, as `ViT-L-14/datacomp_xl_s13b_b90k` or `pocket`. "
                    "Scores mean nothing for another one, so a worker refuses a mismatch."
                ),
                "templates": {
                    **list_of(
                        "What each prompt and contrast is put into, at `{}`; the results are "
                        "averaged.",
                        {
                            "type": "string",
                            "pattern": r"^(?:(?!\{\})[\s\S])*\{\}(?:(?!\{\})[\s\S])*$",
                        },
                        MAX_PROMPTS,
                    ),
                    "default": ["{}"],
                },
                "contrast": prompts_of(
                    "What speaks against every category, added to the contrast of its own."
                ),
                "on_error": choice(
                    "What an image comes to that could not be examined.",
                    _ACTIONS,
                    Decision.REVIEW.value,
                ),
                "views": choice(
                    "What is seen of each frame: its centre, all of it at a smaller scale, or "
                    "tiles along its longer side.",
                    get_args(Views),
                    FramePlan().views,
                ),
                "max_frames": {
                    **integer(
                        "How many frames of an animation are looked at, spread over its length.",
                        1,
                        MAX_FRAMES,
                    ),
                    "default": FramePlan().max_frames,
                },
                "categories": list_of("What to look for.", category_schema(), MAX_CATEGORIES),
                "tenants": _tenants(),
                "limits": _limits(),
                "lists": list_of(
                    "Known images, decided on before the model is asked.", _hash_list(), MAX_LISTS
                ),
                "tests": list_of(
                    "What the policy must say of images; `imagewarden policy test` runs them.",
                    _test(),
                    MAX_TESTS,
                ),
            },
            ("version", "id", "model", "categories"),
        ),
    }


def keys(schema: Schema, within: str = "") -> Iterator[tuple[str, Schema]]:
    """Every key there is, by its path (`categories[].prompts[].text`), with what is said of it.
    ``*`` stands for names that the author chooses."""
    for name, inner in schema.get("properties", {}).items():
        path = f"{within}.{name}" if within else name
        yield path, inner
        yield from keys(inner, path)
    if isinstance(inner := schema.get("additionalProperties"), dict):
        yield from keys(inner, f"{within}.*")
    if isinstance(inner := schema.get("items"), dict):
        yield from keys(inner, f"{within}[]")
    for inner in schema.get("oneOf", ()):
        yield from keys(inner, within)


# ---------------------------------------------------------------- besides categories


def _tenants() -> Schema:
    thresholds = object_of(
        "What is left out stays as the category has it.",
        {
            "review": number("Probability from which this tenant's images are reviewed.", 0, 1),
            "block": number("Probability from which this tenant's images are blocked.", 0, 1),
        },
    )
    thresholds["minProperties"] = 1
    return map_of(
        "Thresholds of single tenants, by category id.",
        map_of("A tenant, as requests name it.", thresholds),
    )


def _limits() -> Schema:
    rate = object_of(
        "A brake: where more of a tenant's requests would be blocked than this, block becomes "
        "review.",
        {
            "per": {
                "description": "How far it looks back: 1s to 1d, such as 10m.",
                "type": "string",
                "pattern": whole(DURATION.pattern),
            },
            "share": {
                **number("Share of the requests, above 0 and below 1.", 0, 1),
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
            },
            "min_requests": integer("From how many requests on it counts.", 1, 10**9),
        },
        ("per", "share", "min_requests"),
    )
    return object_of(
        "What the policy as a whole may do.", {"max_block_rate": rate}, ("max_block_rate",)
    )


def _hash_list() -> Schema:
    return object_of(
        "A list of perceptual hashes.",
        {
            "id": label("Its name in verdicts."),
            "file": path_below(
                "PDQ hashes, 64 hexadecimal digits a line, as a path from the policy's folder."
            ),
            "action": choice("What is done with an image that is on it.", _ACTIONS),
            "distance": {
                **integer("At most so many of the 256 bits may differ.", 0, MAX_DISTANCE),
                "default": DISTANCE,
            },
        },
        ("id", "file", "action"),
    )


def _test() -> Schema:
    return object_of(
        "An image, and what the policy must say of it.",
        {
            "image": path_below("A path from the policy's folder."),
            "expect": choice("The decision.", _ACTIONS),
            "tenant": text("Whose thresholds apply."),
        },
        ("image", "expect"),
    )
