"""``imagewarden policy prompts``: what each prompt and contrast adds on labelled images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.assembly import load_model
from worker.authoring.examples import Example
from worker.authoring.folds import near_duplicates
from worker.authoring.prompt_study import Candidate, CategoryStudy, TextEffect, study
from worker.authoring.results import Interval
from worker.authoring.variations import TextEmbeddings
from worker.commands.labelled import LabelOptions, embedded
from worker.commands.render import Exit, Format, progress_bar
from worker.compile import compile_policy, texts_of
from worker.errors import Misconfigured
from worker.policy import Category, Policy, check_model
from worker.policy_yaml import load_policy
from worker.seams import Encoder
from worker.settings import Settings

_TEXTS_PER_CALL: Final = 64
_SIDES: Final = {"prompt": "for", "contrast": "against", "exception": "exception"}
_COLOURS: Final = {"helps": "green", "hurts": "red", "no difference shown": "dim"}


def study_prompts(
    settings: Settings,
    file: Path,
    label_options: LabelOptions,
    ids: Sequence[str],
    candidates_file: Path | None,
    format: Format,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Prints a study of each category."""
    # what is wrong with any of these should not wait for the model to load
    policy = load_policy(file, unsolved=True)
    labels = label_options.read(policy)
    _check_ids(policy, ids)
    candidates = [] if candidates_file is None else read_candidates(candidates_file)
    if candidates:
        candidates = _new(candidates, _only(policy, ids))
    encoder = load(settings)
    check_model(policy, encoder.info)
    found = embedded(settings, encoder, policy, labels, cache=label_options.cache)
    for name, why in found.left_out:
        typer.echo(f"left out {name}: {why}", err=True)
    for note in found.notes:
        typer.echo(note, err=True)
    texts = _encoded(encoder, policy, candidates)
    compiled = compile_policy(policy, encoder.info, texts)
    groups = near_duplicates([example.embedding for example in found.examples])
    for category, calibrated in zip(compiled.categories, compiled.calibrated, strict=True):
        if category.id in ids or (not ids and _shown(found.examples, category)):
            with progress_bar() as progress:
                progress.add_task(f"studying {category.id}", total=None)
                studied = study(
                    policy,
                    category,
                    calibrated,
                    encoder.info,
                    texts,
                    found.examples,
                    groups,
                    candidates,
                )
            if format is Format.JSONL:
                sys.stdout.write(_line(studied) + "\n")
                sys.stdout.flush()
            else:
                _print(studied)
    return Exit.ALL_ALLOWED


def read_candidates(file: Path) -> list[Candidate]:
    """A phrasing a line: after `+`, or nothing, a prompt; after `-` a contrast. Empty lines and
    those that begin with `#` are passed over. Raises ``Misconfigured``."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Misconfigured(
            f"{file} cannot be read ({error.strerror}); check its name and its rights"
        ) from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{file} cannot be read as text in UTF-8 ({error})") from error
    candidates: dict[str, Candidate] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (written := line.strip()) or written.startswith("#"):
            continue
        phrase = written[1:].strip() if written[0] in "+-" else written
        candidate = Candidate("contrast" if written[0] == "-" else "prompt", phrase)
        if not phrase:
            problems.append(f"{file}:{number}: there is no text after {written!r}; add it")
        elif candidates.setdefault(phrase, candidate) != candidate:
            problems.append(f"{file}:{number}: {phrase!r} is both a prompt and a contrast here")
    if not (candidates or problems):
        problems.append(f"{file}: there is no phrasing in it; write one a line")
    if problems:
        raise Misconfigured("\n".join(problems))
    return list(candidates.values())


def _check_ids(policy: Policy, ids: Sequence[str]) -> None:
    known = [category.id for category in policy.categories if category.mode != "off"]
    if unknown := [id_ for id_ in ids if id_ not in known]:
        raise Misconfigured(
            f"no category that is on is named {unknown[0]!r}; there are: {', '.join(known)}"
        )


def _only(policy: Policy, ids: Sequence[str]) -> Category:
    """The one that candidates are for."""
    on = [c for c in policy.categories if c.mode != "off" and (not ids or c.id in ids)]
    if len(on) != 1:
        raise Misconfigured(
            f"candidates are for one category: name it with --category, one of: "
            f"{', '.join(category.id for category in on)}"
        )
    if not on[0].prompts:
        raise Misconfigured(f"{on[0].id} has a head and no prompts, so no phrasing can be added")
    return on[0]


def _new(candidates: Sequence[Candidate], category: Category) -> list[Candidate]:
    """Those that the category does not have yet, on whichever side."""
    there = {prompt.text for prompt in (*category.prompts, *category.contrast)}
    there |= {prompt.text for each in category.exceptions for prompt in each.prompts}
    for candidate in candidates:
        if candidate.text in there:
            typer.echo(f"left out {candidate.text!r}: {category.id} has it already", err=True)
    if not (new := [candidate for candidate in candidates if candidate.text not in there]):
        raise Misconfigured(f"{category.id} has all of the candidates already")
    return new


def _encoded(encoder: Encoder, policy: Policy, candidates: Sequence[Candidate]) -> TextEmbeddings:
    added = [t.replace("{}", c.text) for c in candidates for t in policy.templates]
    texts = list(dict.fromkeys([*texts_of(policy), *added]))
    with progress_bar() as progress:
        task = progress.add_task("embedding the texts", total=len(texts))
        rows = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            rows.append(encoder.encode_texts(texts[start : start + _TEXTS_PER_CALL]))
            progress.advance(task, len(rows[-1]))
    return dict(zip(texts, np.concatenate(rows), strict=True))


def _shown(examples: Sequence[Example], category: Category) -> bool:
    return any(example.says(category.id) for example in examples)


# ---------------------------------------------------------------- for programs


def _line(studied: CategoryStudy) -> str:
    line = asdict(studied, dict_factory=_plain)
    for side in ("texts", "candidates"):
        effects: tuple[TextEffect, ...] = getattr(studied, side)
        line[side] = [
            {**asdict(effect, dict_factory=_plain), "verdict": effect.verdict} for effect in effects
        ]
    return json.dumps(line, ensure_ascii=False)


def _plain(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {
        name: value._asdict() if isinstance(value, Interval) else value for name, value in fields
    }


# ---------------------------------------------------------------- for people


def _print(studied: CategoryStudy) -> None:
    # In a pipe there is no width to fit into
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(Text(studied.category, "bold"))
    for sentence in _figures(studied):
        console.print(Text(f"  {sentence}"))
    if studied.refused:
        console.print()
        return
    console.print(_effects("what each text adds to them", studied.texts, alone=True))
    if studied.candidates:
        tried = len(studied.candidates)
        title = f"what each of {tried} candidates would add, by itself"
        console.print(_effects(title, studied.candidates, alone=False))
        if tried > 1:
            console.print(
                Text(
                    f"  {tried} were tried, and the intervals are as wide as that takes. Whatever "
                    f"was chosen on these images looks better on them than on others.\n",
                    "dim",
                )
            )
    console.print(_look_alikes(studied))


def _figures(studied: CategoryStudy) -> Iterator[str]:
    counts = f"{studied.positives} images show it, {studied.negatives} do not"
    if studied.refused or studied.auroc is None or studied.recall is None:
        yield f"{counts}: {studied.refused}"
        return
    unlike = studied.groups
    if unlike < studied.positives + studied.negatives:
        counts += f"; counting near-duplicates once, there are {unlike}"
    yield counts
    if not studied.calibrated:
        yield "it is not calibrated for its present wording, so its threshold says little"
    yield f"AUROC {_interval(studied.auroc)}"
    whence = (
        f"as many as reach its threshold {studied.threshold:g}"
        if studied.at_fpr == studied.fpr
        else f"its threshold {studied.threshold:g} has {100 * studied.fpr:.1f} %"
    )
    alarms = f"{100 * studied.at_fpr:.1f} % false alarms ({whence})"
    yield f"recall {_percent(studied.recall)} at {alarms}"


def _effects(title: str, effects: Sequence[TextEffect], *, alone: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for column in ("side", "text", "AUROC", "recall", *(["alone, AUROC"] if alone else []), ""):
        table.add_column(column, overflow="fold", justify="right" if "A" in column else "left")
    ranked = effects if alone else sorted(effects, key=lambda e: -e.auroc.value if e.auroc else 0)
    for effect in ranked:
        verdict = effect.verdict
        table.add_row(
            _SIDES[effect.side],
            Text(effect.text),
            _interval(effect.auroc, "+") if effect.auroc else "",
            _percent(effect.recall, "+") if effect.recall else "",
            *([_interval(effect.alone) if effect.alone else ""] if alone else []),
            Text(verdict, _COLOURS[verdict]) if verdict else Text("the only one", "dim"),
        )
    return table


def _look_alikes(studied: CategoryStudy) -> Table:
    alarms = sum(one.alarms for one in studied.look_alikes)
    title = (
        f"{alarms} of the {studied.negatives} images that do not show it reach "
        f"{studied.threshold:g}"
        if alarms
        else f"no image that does not show it reaches {studied.threshold:g}; the nearest:"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    table.add_column("alarms", justify="right", no_wrap=True)
    table.add_column("loudest prompt", overflow="fold")
    table.add_column("worst first", overflow="fold")
    for one in studied.look_alikes:
        table.add_row(
            Text(one.label),
            f"{one.alarms} of {one.images}",
            Text(one.loudest or "(its head)"),
            Text(", ".join(one.names)),
        )
    return table


def _interval(of: Interval, sign: str = "") -> str:
    digits = f"{sign}.4f" if sign else ".3f"  # differences are small
    return f"{of.value:{digits}} [{of.low:{digits}}, {of.high:{digits}}]"


def _percent(of: Interval, sign: str = "") -> str:
    return f"{100 * of.value:{sign}.1f} [{100 * of.low:{sign}.1f}, {100 * of.high:{sign}.1f}] %"
