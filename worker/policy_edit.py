"""Write calibrations into the text of a policy, leaving every other character as it is.

YAML libraries that load and dump keep comments but not the layout. So the file is only parsed, for
where things stand in it, and the new text is spliced in there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from worker.errors import Misconfigured

Entries = Mapping[str, str | int | float]


def with_calibrations(text: str, calibrations: Mapping[str, Entries]) -> str:
    """``text`` of a valid policy, with the ``calibration`` of each category, by id, replaced or
    added. Raises ``Misconfigured`` where one is shared through an anchor."""
    newline = "\r\n" if "\r\n" in text else "\n"
    splices = []
    for category in _categories(text):
        keys = {key.value: (key, value) for key, value in category.value}
        if (entries := calibrations.get(keys["id"][1].value)) is not None:
            splices.append(_splice(category, keys, entries, newline))
    for start, end, replacement in sorted(splices, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content, so that whoever reads it meanwhile sees all the old or all the new.
    A symbolic link stays one; the rights stay as they were."""
    path = path.resolve()
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            shutil.copymode(path, file.name)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _categories(text: str) -> list[MappingNode]:
    root = YAML(typ="rt", pure=True).compose(text)
    found = next(value for key, value in root.value if key.value == "categories")
    categories: list[MappingNode] = found.value
    return categories


def _splice(
    category: MappingNode,
    keys: Mapping[str, tuple[ScalarNode, Node]],
    entries: Entries,
    newline: str,
) -> tuple[int, int, str]:
    """Where a replacement starts and ends in the text, and the replacement."""
    if "calibration" in keys:
        key, value = keys["calibration"]
        start, end = key.start_mark.index, _end(value)
        if value.anchor or not start < value.start_mark.index:
            raise Misconfigured(
                f"the calibration of {keys['id'][1].value!r} is shared through an anchor (& or *); "
                f"write it out for each category"
            )
        return start, end, _written(category, key, entries, newline)
    # it belongs before the thresholds, of which a valid category has at least one
    key = min((keys[name][0] for name in ("review", "block") if name in keys), key=_position)
    separator = ", " if category.flow_style else newline + " " * key.start_mark.column
    start = key.start_mark.index
    return start, start, _written(category, key, entries, newline) + separator


def _written(category: MappingNode, beside: ScalarNode, entries: Entries, newline: str) -> str:
    """In block style, unless the category is in flow style: then as JSON, which is YAML too."""
    if category.flow_style:
        return f'"calibration": {json.dumps(dict(entries))}'
    indent = newline + " " * (beside.start_mark.column + 2)
    return "calibration:" + "".join(
        # digests are quoted for their colon; all else is plain, as it would be written by hand
        f"{indent}{name}: {json.dumps(value) if ':' in str(value) else value}"
        for name, value in entries.items()
    )


def _position(node: Node) -> int:
    position: int = node.start_mark.index
    return position


def _end(node: Node) -> int:
    """Where the text of a node ends. A block's own mark stands where the next thing begins, after
    the comments between them."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, MappingNode) else last)
    end: int = node.end_mark.index
    return end
