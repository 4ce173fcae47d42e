"""HTML pages from the package's templates: each one file, escaped, that loads nothing."""

from __future__ import annotations

import base64
import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from worker.authoring import quantities
from worker.authoring.edit import replace_file
from worker.authoring.results import Interval
from worker.errors import Misconfigured


def render(template: str, **context: Any) -> str:
    """The page of ``templates/<template>``. Whatever is not ``Markup`` is escaped; a name that the
    context lacks raises ``jinja2.UndefinedError``."""
    return _environment().get_template(template).render(context)


def check_place(path: Path) -> None:
    """Raises ``Misconfigured`` where ``write_page`` could not write: to be asked before the work
    whose outcome the page is to show."""
    if path.is_dir():
        raise Misconfigured(
            f"{path} is a folder; name a file in it, such as {path / 'report.html'}"
        )
    if path.suffix.lower() not in (".html", ".htm"):  # such as the policy, by a slip
        raise Misconfigured(f"{path}: a report is HTML; name a file that ends in .html")
    if not os.access(path.absolute().parent, os.W_OK):
        raise Misconfigured(
            f"{path} cannot be written: its folder is missing or may not be written to; create it, "
            f"or name another"
        )


def write_page(path: Path, html: str) -> None:
    """All of the page or nothing. Raises ``Misconfigured`` where the system refuses."""
    try:
        # Names of files need not be valid Unicode; what is not becomes a question mark
        replace_file(path, html.encode("utf-8", "replace"))
    except OSError as error:
        raise Misconfigured(
            f"{path} cannot be written ({error.strerror}); make room, or name another file"
        ) from None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("worker.authoring", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": quantities.count,
        "counted": quantities.counted,
        "decimal": quantities.decimal,
        "listed": quantities.listed,
        "percent": quantities.percent,
        "percents": percents,
        "decimals": decimals,
        "jpeg": jpeg,
        "sentence": quantities.sentence,
        "short": short,
    }
    return environment


def percents(interval: Interval | None) -> str:
    """``2.1 % (1.4–3.0)``."""
    if interval is None:
        return quantities.NONE
    low, high = (quantities.percent(end, unit=False) for end in interval[1:])
    return f"{quantities.percent(interval.value)} ({low}{quantities.DASH}{high})"


def decimals(interval: Interval | None) -> str:
    """``0.981 (0.972–0.989)``."""
    if interval is None:
        return quantities.NONE
    low, high = (quantities.decimal(end) for end in interval[1:])
    return f"{quantities.decimal(interval.value)} ({low}{quantities.DASH}{high})"


def jpeg(thumbnail: bytes) -> str:
    """A JPEG as the address of itself."""
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail).decode()


def short(digest: str) -> str:
    """The first digits of a digest, enough to tell it from its neighbours."""
    return digest.removeprefix("sha256:")[:12]
