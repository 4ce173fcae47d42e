"""Which category a label means: by its name, or because somebody says so."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Final

NO_CATEGORY: Final = "none"
"""What a label is said to mean that means no category."""

_ALIKE: Final = 0.8  # of difflib's ratio: a typo rather than another word


def meanings_of(
    places: Mapping[str, str],
    ids: Sequence[str],
    given: Mapping[str, str],
    problems: list[str],
) -> dict[str, str]:
    """Category ids by label, for those labels that mean a category.

    ``places`` has, by label, where it was first written; ``ids`` are the categories'; ``given`` is
    what labels are said to mean (``NO_CATEGORY`` for none). What is wrong is added to ``problems``.
    """
    for label, meant in given.items():
        if meant not in (*ids, NO_CATEGORY):
            problems.append(
                f"--label {label}={meant}: no category is named {meant!r}; there are: "
                f"{', '.join(ids)}"
            )
        if label not in places:
            problems.append(
                f"--label {label}={meant}: no image is labelled {label!r}; there are: "
                f"{', '.join(sorted(places))}"
            )
    by_last_part: dict[str, list[str]] = {}
    for id_ in ids:
        by_last_part.setdefault(id_.rpartition(".")[2], []).append(id_)
    meanings = {}
    for label, place in places.items():
        if label in given:
            meanings[label] = given[label]
        elif label in ids:
            meanings[label] = label
        elif len(candidates := by_last_part.get(label, [])) == 1:
            meanings[label] = candidates[0]
        elif candidates:
            problems.append(
                f"{place}: the label {label!r} may mean {' or '.join(candidates)}; say which "
                f"with --label {label}=CATEGORY"
            )
        elif label != NO_CATEGORY and (alike := _alike(label, ids)):
            problems.append(
                f"{place}: no category is named {label!r}; if it is {alike}, say so with "
                f"--label {label!r}={alike}, and if it is none, with --label {label!r}="
                f"{NO_CATEGORY}"
            )
    known = {label: meant for label, meant in meanings.items() if meant != NO_CATEGORY}
    if not (known or problems):
        problems.append(
            f"none of the labels ({', '.join(sorted(places))}) means a category "
            f"({', '.join(ids)}); say which means which with --label LABEL=CATEGORY"
        )
    return known


def _alike(label: str, ids: Sequence[str]) -> str | None:
    """The category that was probably meant."""
    names = {name.casefold(): id_ for id_ in ids for name in (id_.rpartition(".")[2], id_)}
    close = difflib.get_close_matches(label.casefold(), names, n=1, cutoff=_ALIKE)
    return names[close[0]] if close else None
