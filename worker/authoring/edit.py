"""Write values into the text of a policy, leaving every other character as it is.

YAML libraries that load and dump keep comments but not the layout. So the file is only parsed, for
where things stand in it, and the new text is spliced in there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from worker.errors import Misconfigured

Scalar = str | int | float | bool
Value = Scalar | Sequence["Value"] | Mapping[str, "Value"]
Keys = Mapping[str, tuple[ScalarNode, Node]]

#: Texts that mean themselves without quotes: words that YAML takes for nothing else, and dates.
_PLAIN: Final = re.compile(
    r"(?!(?i:true|false|yes|no|on|off|null|y|n)$)[A-Za-z][A-Za-z0-9_./-]*|[0-9]{4}(-[0-9]{2}){2}"
)


def with_keys(text: str, edits: Mapping[str, Mapping[str, Value]]) -> str:
    """``text`` of a valid policy in which each category, by id, has these values: replaced where
    the key is there, else added before its thresholds. A key such as ``block.value`` is that of a
    mapping inside the category, which must be there.

    Raises ``Misconfigured`` where a value is shared through an anchor, and for a category or a
    mapping that is not there.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    categories = {_keys(node)["id"][1].value: node for node in _categories(text)}
    splices = []
    for id_, values in edits.items():
        if id_ not in categories:
            raise Misconfigured(f"no category is named {id_!r}; there are: {', '.join(categories)}")
        for path, value in values.items():
            outer, _, inner = path.rpartition(".")
            node = categories[id_]
            if outer:
                node = _inside(node, outer, id_)
            splices.append(_splice(node, inner, value, id_, newline))
    # From the end on, so that places stay what they are; at one place the last edit first
    for (start, end), _, replacement in sorted(
        (((start, end), number, new) for number, (start, end, new) in enumerate(splices)),
        reverse=True,
    ):
        text = text[:start] + replacement + text[end:]
    return text


def with_category(text: str, values: Mapping[str, Scalar]) -> str:
    """``text`` of a valid policy with one category more, the last, which has these values."""
    newline = "\r\n" if "\r\n" in text else "\n"
    categories = _sequence(text)
    end = _end(categories.value[-1])
    if categories.flow_style:
        return f"{text[:end]}, {json.dumps(dict(values), ensure_ascii=False)}{text[end:]}"
    if not text[:end].endswith(newline):  # as a block of text does
        rest_of_line, _, below = text[end:].partition(newline)  # which may hold a comment
        text = text[:end] + rest_of_line + newline + below
        end = len(text) - len(below)
    margin = " " * categories.start_mark.column
    lines = [f"{key}: {_plain(value)}" for key, value in values.items()]
    written = f"{newline}{margin}- " + f"{newline}{margin}  ".join(lines) + newline
    return text[:end] + written + text[end:]


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content, so that whoever reads it meanwhile sees all the old or all the new.
    A symbolic link stays one; the rights stay as they were, and a new file may be read by all."""
    path = path.resolve()
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, file.name)
            else:
                Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _sequence(text: str) -> SequenceNode:
    root = YAML(typ="rt", pure=True).compose(text)
    found: SequenceNode = next(value for key, value in root.value if key.value == "categories")
    return found


def _categories(text: str) -> list[MappingNode]:
    categories: list[MappingNode] = _sequence(text).value
    return categories


def _keys(mapping: MappingNode) -> Keys:
    return {key.value: (key, value) for key, value in mapping.value}


def _inside(category: MappingNode, name: str, id_: str) -> MappingNode:
    key, value = _keys(category).get(name, (None, None))
    if not isinstance(value, MappingNode) or not value.value:
        raise Misconfigured(f"`{name}` of {id_!r} is no mapping with keys; write it as one")
    _refuse_shared(key, value, id_)
    return value


def _splice(
    mapping: MappingNode, name: str, value: Value, id_: str, newline: str
) -> tuple[int, int, str]:
    """Where a replacement starts and ends in the text, and the replacement."""
    keys = _keys(mapping)
    if name in keys:
        key, old = keys[name]
        _refuse_shared(key, old, id_)
        return _position(key), _end(old), _written(mapping, key, name, value, newline)
    thresholds = [keys[threshold][0] for threshold in ("review", "block") if threshold in keys]
    key = min(thresholds or [mapping.value[0][0]], key=_position)
    separator = ", " if mapping.flow_style else newline + " " * key.start_mark.column
    start = _position(key)
    return start, start, _written(mapping, key, name, value, newline) + separator


def _refuse_shared(key: ScalarNode | None, value: Node, id_: str) -> None:
    # what an alias stands for was written further up
    if key is not None and (value.anchor or _position(value) < _position(key)):
        raise Misconfigured(
            f"the {key.value} of {id_!r} is shared through an anchor (& or *); write it out for "
            f"each category"
        )


def _written(
    mapping: MappingNode, beside: ScalarNode, name: str, value: Value, newline: str
) -> str:
    """In block style, unless what it stands in is in flow style: then as JSON, which is YAML too,
    and with a quoted key only if its neighbours' are."""
    if mapping.flow_style:
        return f"{json.dumps(name) if beside.style else name}: {json.dumps(value)}"
    if not isinstance(value, Mapping):
        return f"{name}: {_plain(value)}"
    indent = newline + " " * (beside.start_mark.column + 2)
    return f"{name}:" + "".join(f"{indent}{key}: {_plain(of)}" for key, of in value.items())


def _plain(value: Value) -> str:
    """On one line, as it would be written by hand."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


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
