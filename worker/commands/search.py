"""``imagewarden search``: look-alikes of an incident among the images that were judged."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.assembly import examiner_of, load_model
from worker.commands.past import DEFAULT_SINCE, past_of_files, past_of_topics, reader_of, window_of
from worker.commands.render import COLOURS, Exit, Format
from worker.commands.scan import Target, keep_nothing, targets_of
from worker.errors import Misconfigured, Unexaminable
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past
from worker.past.search import Match, images_of, nearest
from worker.seams import Encoder
from worker.settings import Settings
from worker.types import FramePlan

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COLUMNS: Final = ("first_at", "item_id", "request_id", "tenant", "action", "decided_by", "policy")

Verdicts = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What the options of the command say."""

    inputs: Sequence[Path] = ()
    since: str | None = None
    until: str | None = None
    top: int = 20


async def search(
    settings: Settings,
    query: str,
    options: SearchOptions,
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Prints the judged images nearest to an image or a text, and the verdicts on them."""
    image = _image(query)
    with EmbeddingStore() as store:
        past = await _past(settings, options, store)
        if _SHA256.fullmatch(query):
            weights, preprocess, rows = _known(past, query)
        else:
            weights, preprocess, rows = await _encoded(settings, image or query, load)
        places = images_of(past, weights, preprocess)
        if not len(places):
            raise Misconfigured(_nothing(past))
        matches = await asyncio.to_thread(nearest, rows, store, places, top=options.top)
        verdicts = _verdicts(past, matches)
    if format is Format.JSONL:
        for rank, match in enumerate(matches, start=1):
            sys.stdout.write(_line(rank, match, verdicts[match.sha256]) + "\n")
    else:
        # in a pipe there is no width to fit into
        Console(width=None if sys.stdout.isatty() else 160).print(_table(matches, verdicts))
    typer.echo(f"{len(matches):,} nearest of {len(places):,} images", err=True)
    return Exit.ALL_ALLOWED


def _image(query: str) -> Target | None:
    """None for what is no image. What looks like a file but is none was meant as one."""
    if not query.strip():
        raise Misconfigured("there is nothing to search for; give a text, an image or its SHA-256")
    path = Path(query)
    if "://" in query or path.is_file():
        [target] = targets_of([query])
        return target
    suffixes = {suffix for suffix in Image.registered_extensions() if suffix != ".pdf"}
    if path.is_dir() or path.suffix.lower() in suffixes:
        raise Misconfigured(f"{query} is no image file; check its path")
    return None


async def _past(settings: Settings, options: SearchOptions, store: EmbeddingStore) -> Past:
    if options.inputs:
        window = window_of(options.since, options.until) if options.since else None
        return await asyncio.to_thread(past_of_files, options.inputs, store, window)
    window = window_of(options.since or DEFAULT_SINCE, options.until)
    async with reader_of(settings, settings.kafka.verdicts_topic) as verdicts:
        return await past_of_topics(settings, verdicts, store, window)


# ---------------------------------------------------------------- what is looked for

Query = tuple[str, str, NDArray[np.floating]]  #: weights digest, preprocessing digest, rows


def _known(past: Past, sha256: str) -> Query:
    """An image of the past, by the model that saw it last."""
    seen = past.verdicts.filter(pc.equal(past.verdicts["sha256"], sha256)).sort_by("produced_at")
    for verdict in reversed(seen.to_pylist()):
        for plan in past.embeddings.plans():
            places = past.embeddings.places([(sha256, verdict["model_digest"])], plan)
            if places[0] >= 0:
                rows = past.embeddings.rows(places).values
                return verdict["weights_digest"], verdict["preprocess_digest"], rows
    raise Misconfigured(
        f"no embedding of the image {sha256} is kept in this time; look further back with --since, "
        f"or give the image itself"
    )


async def _encoded(
    settings: Settings, query: Target | str, load: Callable[[Settings], Encoder]
) -> Query:
    encoder = await asyncio.to_thread(load, settings)
    info = encoder.info
    if isinstance(query, str):
        rows: NDArray[np.floating] = await asyncio.to_thread(encoder.encode_texts, [query])
        return info.weights_digest, info.preprocess.digest, rows
    # nothing is kept, in Redis least of all: it was not published
    async with examiner_of(settings, encoder, keep_nothing, tiers=[]) as examiner:
        try:
            request = await query.request()
            if request.url is not None:
                examined = await examiner.by_url(request.url, FramePlan())
            else:
                examined = await examiner.by_content(request.data or b"", FramePlan())
        except (Unexaminable, OSError) as error:
            raise Misconfigured(f"{query.name} cannot be examined: {error}") from error
    return info.weights_digest, info.preprocess.digest, examined.embedding.rows


def _nothing(past: Past) -> str:
    window = f" in {past.window}" if past.window else ""
    if not len(past):
        return f"there are no verdicts{window}; look further back with --since"
    models = past.verdicts["model"].cast(pa.string()).unique().to_pylist()
    return (
        f"of {len(past):,} verdicts{window} none has an embedding by this model that is still "
        f"kept; they are by {', '.join(map(repr, sorted(models)))}"
    )


# ---------------------------------------------------------------- what is printed


def _verdicts(past: Past, matches: Sequence[Match]) -> Verdicts:
    """On each of the images found, the newest first."""
    found = pa.array([match.sha256 for match in matches], pa.string())
    chosen = past.verdicts.filter(pc.is_in(past.verdicts["sha256"], value_set=found))
    on: dict[str, list[Mapping[str, Any]]] = {match.sha256: [] for match in matches}
    for verdict in chosen.sort_by([("first_at", "descending")]).to_pylist():
        on[verdict["sha256"]].append(verdict)
    return on


def _line(rank: int, match: Match, verdicts: Sequence[Mapping[str, Any]]) -> str:
    said = [{name: verdict[name] for name in _COLUMNS} for verdict in verdicts]
    for verdict in said:
        verdict["first_at"] = verdict["first_at"].isoformat()
    return json.dumps(
        {
            "rank": rank,
            "cosine": round(match.cosine, 6),
            "sha256": match.sha256,
            "verdicts": said,
        },
        ensure_ascii=False,
    )


def _table(matches: Sequence[Match], verdicts: Verdicts) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("cosine", justify="right", no_wrap=True)
    for name in ("last seen (UTC)", "item", "tenant", "action", "because of", "SHA-256"):
        table.add_column(name, overflow="fold")
    for rank, match in enumerate(matches, start=1):
        last, *earlier = verdicts[match.sha256]
        item = Text(last["item_id"])
        if earlier:
            item.append(f" and {len(earlier):,} more", "dim")
        table.add_row(
            str(rank),
            f"{match.cosine:.3f}",
            f"{last['first_at']:%Y-%m-%d %H:%M}",
            item,
            Text(last["tenant"] or ""),
            Text(last["action"], COLOURS[last["action"]]),
            Text(last["decided_by"] or last["listed"] or ""),
            match.sha256,
        )
    return table
