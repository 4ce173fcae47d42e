"""A category more in the text of a policy, with everything else as it was."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from worker.authoring.edit import with_category

NEW = {"id": "colour.teal", "head": "heads/teal.safetensors", "review": 0.5, "mode": "shadow"}
TEXTS = {
    "block": "id: test\ncategories:\n  - id: a\n    review: 0.5\ntenants: {}\n",
    "comment": "categories:\n  - id: a\n    review: 0.5  # why\n\n# on tenants\ntenants: {}\n",
    "no end of line": "categories:\n  - id: a\n    review: 0.5",
    "not indented": "categories:\n- id: a\n  review: 0.5\ntenants: {}\n",
    "indented far": "categories:\n      -   id: a\n          review: 0.5\n",
    "ends in a text": "categories:\n  - id: a\n    description: |\n      this\n      that\n",
    "text, then more": "categories:\n  - id: a\n    description: |\n      this\ntenants: {}\n",
    "flow": "{categories: [{id: a, review: 0.5}], tenants: {}}\n",
    "flow in block": "categories:\n  - {id: a, review: 0.5}  # why\ntenants: {}\n",
    "windows": "categories:\r\n  - id: a\r\n    review: 0.5\r\ntenants: {}\r\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_it_is_the_last_and_all_else_is_what_it_was(text: str) -> None:
    def parsed(of: str) -> dict:  # type: ignore[type-arg]
        content: dict = YAML(typ="safe", pure=True).load(of)  # type: ignore[type-arg]
        return content

    before, after = parsed(text), parsed(with_category(text, NEW))
    assert after["categories"] == [*before["categories"], NEW]
    assert {**after, "categories": None} == {**before, "categories": None}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_line_stays_as_it_was_written(text: str) -> None:
    edited = with_category(text, NEW)
    if not text.startswith("{"):
        assert all(line in edited.splitlines() for line in text.splitlines())
    assert ("\r\n" in edited) == ("\r\n" in text)
    assert "\n" not in edited.replace("\r\n", "") or "\r\n" not in text
