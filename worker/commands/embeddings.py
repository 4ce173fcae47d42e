"""``imagewarden embeddings export``: the past as Parquet."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.filesize import decimal

from worker.commands.past import past_of_topics, reader_of, window_of
from worker.commands.render import Exit, progress_bar
from worker.errors import Misconfigured
from worker.past.embedding_store import EmbeddingStore
from worker.past.join import Past
from worker.past.parquet import write_past
from worker.settings import Settings


async def export(settings: Settings, since: str, until: str | None, out: Path) -> Exit:
    """Writes the file, whole or not at all."""
    window = window_of(since, until)
    if out.suffix != ".parquet":  # such as a policy, by a slip
        raise Misconfigured(f"{out}: the past is Parquet; name a file that ends in .parquet")
    if not out.parent.is_dir():
        raise Misconfigured(f"there is no folder {out.parent} to write {out.name} into; create it")
    with EmbeddingStore() as store:
        async with reader_of(settings, settings.kafka.verdicts_topic) as verdicts:
            past = await past_of_topics(settings, verdicts, store, window)
        with progress_bar() as bar:
            task = bar.add_task("writing", total=len(past))
            rows = write_past(
                past,
                out,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _tell(past, rows, out)
    return Exit.ALL_ALLOWED


def _tell(past: Past, rows: int, out: Path) -> None:
    for sentence in past.tally.sentences():
        typer.echo(sentence, err=True)
    typer.echo(
        f"{out}: {len(past):,} verdicts of {past.window} on {len(past.embeddings):,} embeddings, "
        f"in {rows:,} rows and {decimal(out.stat().st_size)}; "
        f"without an embedding: {len(past) - past.embedded():,}",
        err=True,
    )
