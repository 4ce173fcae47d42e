"""``imagewarden policy explain``: why an image is decided on as it is, prompt by prompt."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.assembly import examiner_of, load_model
from worker.authoring.explain import CategoryExplained, Explained, Needed, Spoken, explain
from worker.commands.render import COLOURS, Exit, Format, progress_bar
from worker.commands.scan import Target, keep_nothing, targets_of
from worker.compile import compile_policy, texts_of
from worker.errors import Misconfigured, Unexaminable
from worker.examine import Examiner
from worker.examined import Examined
from worker.policy import Decision, Policy, check_model
from worker.policy_yaml import load_policy
from worker.seams import Encoder
from worker.settings import Settings
from worker.types import Embedding

_NAMED: Final = 3
_SIDES: Final = {"prompt": "for", "contrast": "against", "exception": "exception"}


async def explain_images(
    settings: Settings,
    targets: Sequence[str],
    tenant: str | None,
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Explains each image, in the order they were named."""
    images = list(targets_of(targets))
    if not images:
        raise Misconfigured("there is no image among what was named; name files, folders or URLs")
    policy = load_policy(Path(settings.policies[0]))
    _check_tenant(policy, tenant)
    outcome = Exit.ALL_ALLOWED
    with progress_bar() as progress:
        loading = progress.add_task("loading the model", total=None)
        encoder = await asyncio.to_thread(load, settings)
        check_model(policy, encoder.info)
        needed = texts_of(policy)
        rows = await asyncio.to_thread(encoder.encode_texts, needed)
        texts = dict(zip(needed, rows, strict=True))
        compiled = compile_policy(policy, encoder.info, texts)
        progress.remove_task(loading)
        async with examiner_of(settings, encoder, keep_nothing, tiers=[]) as examiner:
            for image in images:
                try:
                    embedding = (await _examined(examiner, image, policy)).embedding
                except (Unexaminable, OSError) as error:
                    typer.echo(f"imagewarden: {image.name}: {error}", err=True)
                    outcome = Exit.NOT_EXAMINED
                    continue
                said = explain(compiled, encoder.info, texts, embedding, tenant)
                if format is Format.JSONL:
                    sys.stdout.write(_line(image.name, policy, tenant, embedding, said) + "\n")
                    sys.stdout.flush()
                else:
                    _print(image.name, policy, tenant, embedding, said)
    return outcome


async def _examined(examiner: Examiner, image: Target, policy: Policy) -> Examined:
    if image.url is not None:
        return await examiner.by_url(image.url, policy.plan)
    assert image.path is not None, "a target is a URL or a file"
    return await examiner.by_content(await asyncio.to_thread(image.path.read_bytes), policy.plan)


def _check_tenant(policy: Policy, tenant: str | None) -> None:
    known = sorted({override.tenant for override in policy.overrides})
    if tenant is not None and tenant not in known:
        typer.echo(
            f"imagewarden: {policy.id} overrides nothing for {tenant!r}, so it has the thresholds "
            f"of everybody; it does for: {', '.join(known) or 'nobody'}",
            err=True,
        )


# ---------------------------------------------------------------- for programs


def _line(
    name: str, policy: Policy, tenant: str | None, embedding: Embedding, said: Explained
) -> str:
    facts = embedding.facts
    return json.dumps(
        {
            "image": name,
            "sha256": facts.sha256,
            "frames": facts.frames,
            "policy": {"id": policy.id, "version": policy.version, "digest": policy.digest},
            "tenant": tenant,
            **asdict(said),
        },
        ensure_ascii=False,
    )


# ---------------------------------------------------------------- for people


def _print(
    name: str, policy: Policy, tenant: str | None, embedding: Embedding, said: Explained
) -> None:
    # In a pipe there is no width to fit into
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    title = Text.assemble((name, "bold"), ": ", _coloured(said.decision))
    if said.listed:
        title.append(
            f", because it is on the list {said.listed.id}, {said.listed.distance} bits away; "
            f"what the model would say:"
        )
    elif said.decided_by:
        title.append(f", because of {said.decided_by}")
    title.append(f"   ({policy.id} version {policy.version}", "dim")
    title.append(f", tenant {tenant})" if tenant else ")", "dim")
    console.print(title)
    first = {said.decided_by: 0}
    for category in sorted(said.categories, key=lambda one: first.get(one.id, 1)):
        console.print(Padding(_category(category, embedding), (1, 0, 0, 2)))
    console.print()


def _category(category: CategoryExplained, embedding: Embedding) -> Group:
    sentences = [Text(line, "dim") for line in _thresholds(category)]
    if (frames := embedding.facts.frames) > 1:
        sentences.append(Text(f"frame {category.frame + 1} of {frames} decided", "dim"))
    return Group(
        _heading(category),
        *sentences,
        Padding(_texts(category), (0, 0, 0, 2)),
        *(Text(line) for line in _otherwise(category)),
    )


def _heading(category: CategoryExplained) -> Text:
    how = "calibrated" if category.calibrated else "not calibrated"
    heading = Text.assemble(
        (category.id, "bold"),
        "  ",
        _coloured(category.action),
        f"  probability {category.probability:.3f} ({how}), margin {category.margin:.2f}",
    )
    if category.severity:
        heading.append(f", severity {category.severity}")
    if category.mode == "shadow":
        heading.append("  on trial: it takes no part in the decision", "magenta")
    return heading


def _thresholds(category: CategoryExplained) -> Iterator[str]:
    written = (("review", category.thresholds.review), ("block", category.thresholds.block))
    yield "thresholds: " + ", ".join(
        f"{action} from {threshold:g}" for action, threshold in written if threshold is not None
    )
    if category.held_back is not None:
        yield (
            f"`block` from {category.held_back:g} is not in force: the category is not calibrated "
            f"for its present wording"
        )


def _texts(category: CategoryExplained) -> Table:
    table = Table(
        box=None, show_header=True, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for name in ("side", "text", "weight", "logit", "without it"):
        table.add_column(name, justify="right" if name in ("weight", "logit") else "left")
    for one in category.spoken:
        weight = "" if one.weight == 1 else f"{one.weight:g}"
        table.add_row(
            _SIDES[one.side], Text(one.text), weight, f"{one.logit:.2f}", _without(one, category)
        )
    if head := category.head:
        share = "" if head.weight == 1 else f"{head.weight:g}"
        table.add_row("head", Text(head.file), share, f"{head.logit:.2f}", "")
    return table


def _without(one: Spoken, category: CategoryExplained) -> Text:
    if one.without is None:
        return Text("", "dim")
    if one.without.action == category.action:
        return Text(f"{one.without.probability:.3f}", "dim")
    return Text.assemble(f"{one.without.probability:.3f} ", _coloured(one.without.action))


def _otherwise(category: CategoryExplained) -> Iterator[str]:
    for exception in category.exceptions:
        if exception.taken_off > 0:
            named = " / ".join(f"“{text}”" for text in exception.texts)
            yield f"the exception {named} took {exception.taken_off:.2f} off the margin"
    for needed in category.needed:
        yield f"{needed.action.value} would take {_distance(needed, category)}"
    for action in Decision:
        texts = [one for one in category.decisive if one.without and one.without.action == action]
        if texts:
            named = ", or ".join(f"the {one.side} “{one.text}”" for one in texts[:_NAMED])
            more = len(texts) - _NAMED
            others = f", or any of {more} others, as marked" if more > 0 else ""
            yield f"it would be {action.value} without {named}{others}"
    if category.spoken and not category.decisive:
        yield "no single text decides: it would be the same without any one of them"


def _distance(needed: Needed, category: CategoryExplained) -> str:
    direction = "higher" if needed.by > 0 else "lower"
    bound = "at least" if needed.side == "from" else "below"
    margin = (
        "which no margin reaches"
        if needed.margin is None
        else f"a margin {bound} {needed.margin:.2f} instead of {category.margin:.2f}"
    )
    return (
        f"a probability {abs(needed.by):.3f} {direction} ({bound} {needed.threshold:g}), {margin}"
    )


def _coloured(decision: Decision) -> Text:
    return Text(decision.value, style=f"bold {COLOURS[decision.value]}")
