"""What somebody said of images: a CSV file or a folder for each class, read strictly.

Whoever labels by hand makes mistakes, and a mistake that is read as something else is fitted into
a policy. So everything that is wrong is refused at once, each with its file and line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.authoring.meanings import meanings_of
from worker.authoring.quantities import counted
from worker.egress import public_url
from worker.errors import Misconfigured
from worker.policy import Category

_DEFAULT_SOURCE: Final = "source"  # a column of that name is the source unless another is named
_SPLITS: Final = ("", "train", "test")
_MAX_WEIGHT: Final = 1e6
_MOST_SHOWN: Final = 40
_SUFFIXES: Final = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)


class InvalidLabels(Misconfigured):
    """Labels are refused. ``problems`` has everything that is wrong with them, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(problems) - _MOST_SHOWN
        tail = [f"and {more} more of these"] if more > 0 else []
        super().__init__("\n".join([*problems[:_MOST_SHOWN], *tail]))


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """Where an image is (``path`` or ``url``) and what was said of it.

    ``name`` is for people, without the query string of a URL; ``place`` is where it was said, as
    file and line. ``split`` is ``train``, ``test`` or None.
    """

    name: str
    place: str
    label: str
    path: Path | None = None
    url: str | None = None
    split: str | None = None
    weight: float = 1.0
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled images, and the category that each label means; labels that mean none are left out
    of ``meanings``."""

    images: tuple[LabelledImage, ...]
    meanings: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of how they were read."""
        meant = sorted({image.label for image in self.images} - self.meanings.keys())
        if not meant:
            return ()
        return (f"images with these labels count as showing no category: {', '.join(meant)}",)


def read_labels(
    where: Path,
    categories: Sequence[Category],
    *,
    given: Mapping[str, str] | None = None,
    source: str | None = None,
    source_until: str | None = None,
) -> Labels:
    """Read a CSV file, or a folder that has a folder for each label.

    The columns are ``label``, ``path`` (from the file's own folder) or ``url``, and optionally
    ``split`` (``train`` or ``test``), ``weight`` (above 0), and the one that ``source`` names
    (``source`` where there is one): where the image comes from. Of that, only what stands before
    the first ``source_until`` counts. A label means the category that ``given`` says
    (``none`` for no category), or whose id, or whose id's last part, it is; any other means none.

    Raises ``InvalidLabels``.
    """
    problems: list[str] = []
    if where.is_dir():
        images = list(_in_folder(where, problems))
    else:
        images = list(_in_file(where, source, source_until, problems))
    images = _once(images, problems)
    if not (images or problems):
        problems.append(f"{where}: there is no labelled image in it")
    places = {image.label: image.place for image in reversed(images)}
    ids = [category.id for category in categories]
    meanings = meanings_of(places, ids, given or {}, problems) if images else {}
    if problems:
        raise InvalidLabels(problems)
    return Labels(tuple(images), meanings)


def shown_by(label: str, labels: Labels, categories: Sequence[Category]) -> Mapping[str, bool]:
    """By category id, whether an image with this label shows it. What shows a category shows those
    above it; whether it shows one below, nobody said."""
    parents = {category.id: category.parent for category in categories}
    meant = labels.meanings.get(label)
    above = set(_with_parents(meant, parents))
    return {
        id_: id_ in above
        for id_ in parents
        if id_ in above or meant is None or meant not in _with_parents(id_, parents)
    }


def _with_parents(id_: str | None, parents: Mapping[str, str | None]) -> list[str]:
    line: list[str] = []
    while id_ is not None and id_ not in line:
        line.append(id_)
        id_ = parents.get(id_)
    return line


# ---------------------------------------------------------------- where they stand


def _in_folder(folder: Path, problems: list[str]) -> Iterator[LabelledImage]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            continue
        inner = path.relative_to(folder)
        if len(inner.parts) == 1:
            problems.append(f"{path}: lies in no class's folder; move it into the one it shows")
        else:
            yield LabelledImage(str(inner), str(path), inner.parts[0], path=path)


def _in_file(
    file: Path, source: str | None, source_until: str | None, problems: list[str]
) -> Iterator[LabelledImage]:
    text = _text(file, problems)
    if text is None:
        return
    rows = _rows(file, text, problems)
    line, header = next(rows, (1, []))
    columns = [name.strip() for name in header]
    if wrong := _wrong_with(columns, source):
        problems.append(f"{file}:{line}: {wrong}")
        return
    source = source or _DEFAULT_SOURCE
    for line, row in rows:
        place = f"{file}:{line}"
        if len(row) != len(columns):
            problems.append(
                f"{place}: has {counted(len(row), 'column')} where the first line names "
                f"{len(columns)}; "
                f"put a value that contains a comma in double quotes"
            )
            continue
        of = dict(zip(columns, (value.strip() for value in row), strict=True))
        found = list(_wrong_in(of))
        problems.extend(f"{place}: {wrong}" for wrong in found)
        if found:
            continue
        path, url = of.get("path"), of.get("url") or None
        origin = of.get(source, "")
        if source_until:
            origin = origin.partition(source_until)[0].strip()
        yield LabelledImage(
            name=public_url(url) if url else str(path),
            place=place,
            label=of["label"],
            path=file.parent / path if path else None,
            url=url,
            split=of.get("split") or None,
            weight=float(of.get("weight") or 1.0),
            source=origin or None,
        )


def _text(file: Path, problems: list[str]) -> str | None:
    try:
        raw = file.read_bytes()
    except OSError as error:
        problems.append(f"{file}: cannot be read ({error.strerror}); check its name and its rights")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(f"{file}:{line}: is not UTF-8; save the file as CSV in UTF-8")
        return None


def _rows(file: Path, text: str, problems: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if any(value.strip() for value in row):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{file}:{line}: is no CSV from here on ({error}); check the double quotes")


def _wrong_with(columns: Sequence[str], source: str | None) -> str | None:
    """What is wrong with the first line."""
    if not {"path", "url"} & set(columns) or "label" not in columns:
        return (
            f"the first line must name the columns `path` or `url`, and `label`, separated by "
            f"commas; it has {', '.join(columns)[:200] or 'nothing'}"
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        return f"the column `{twice[0]}` is there twice; rename or remove one"
    if source is not None and source not in columns:
        return f"there is no column `{source}` to take the source from; name one that is there"
    return None


def _wrong_in(of: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a row. Of a URL nothing is quoted, since its query may be a credential."""
    path, url = of.get("path", ""), of.get("url", "")
    if bool(path) == bool(url):
        yield "must have a `path` or a `url`" + (", and not both" if path else "")
    elif "://" in path:
        yield "has a URL for its `path`; write it in a column `url`"
    elif url and not url.startswith(("http://", "https://")):
        yield "has a `url` that does not begin with http:// or https://"
    elif "\0" in path:
        yield "has a `path` with a NUL character in it; remove it"
    if not of["label"]:
        yield "has no `label`; write what the image shows, or remove the line"
    if of.get("split", "") not in _SPLITS:
        yield f"has the split {of['split']!r}; write train, test, or nothing"
    if not _is_weight(of.get("weight") or "1"):
        yield f"has the weight {of['weight']!r}; write a number above 0, at most {_MAX_WEIGHT:g}"


def _is_weight(text: str) -> bool:
    try:
        weight = float(text)
    except ValueError:
        return False
    return math.isfinite(weight) and 0 < weight <= _MAX_WEIGHT


def _once(images: Sequence[LabelledImage], problems: list[str]) -> list[LabelledImage]:
    """Each image once. One that is there again must say the same."""
    first: dict[Path | str | None, LabelledImage] = {}
    for image in images:
        before = first.setdefault(image.path or image.url, image)
        if before.label != image.label:
            problems.append(
                f"{image.place}: {image.name} is labelled {image.label!r}, and {before.label!r} "
                f"at {before.place}; keep one"
            )
        elif before.split != image.split or before.weight != image.weight:
            problems.append(
                f"{image.place}: {image.name} has another split or weight at {before.place}; "
                f"keep one"
            )
    return list(first.values())
