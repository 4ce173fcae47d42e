"""``imagewarden policy promote``: put categories into force, on trial, or out of use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer

from worker.assembly import load_model
from worker.authoring.edit import with_keys
from worker.authoring.policy_file import PolicyFile
from worker.commands.render import Exit
from worker.errors import Misconfigured
from worker.policy import Category, Mode, Policy, check_model, margin_digest
from worker.policy_yaml import parse_policy
from worker.seams import Encoder
from worker.settings import Settings


def promote(
    settings: Settings,
    file: Path,
    categories: Sequence[str],
    mode: Mode,
    *,
    force: bool,
    load: Callable[[Settings], Encoder] = load_model,
) -> Exit:
    """Sets the mode of the categories in the file, and prints what it changed there. Nothing is
    written unless the policy is valid before and after."""
    found = PolicyFile.read(file)
    policy = parse_policy(found.raw, str(file))  # not a target without a value
    chosen = [_category(policy, id_) for id_ in dict.fromkeys(categories)]
    if there := [category.id for category in chosen if category.mode == mode]:
        raise Misconfigured(f"{file}: {' and '.join(there)}: already `mode: {mode}`")
    if mode == "enforce" and not force:
        _check_calibrated(policy, chosen, lambda: load(settings))
    edited = with_keys(found.text, {category.id: {"mode": mode} for category in chosen})
    found.write(edited)
    typer.echo("".join(_diff(file, found.text, edited)), nl=False)
    return Exit.ALL_ALLOWED


def _category(policy: Policy, id_: str) -> Category:
    by_id = {category.id: category for category in policy.categories}
    if id_ not in by_id:
        raise Misconfigured(f"no category is named {id_!r}; there are: {', '.join(by_id)}")
    return by_id[id_]


def _check_calibrated(
    policy: Policy, chosen: Sequence[Category], load: Callable[[], Encoder]
) -> None:
    """Whether a calibration is for the present wording, only the model can tell."""
    without = [category.id for category in chosen if category.calibration is None]
    why = "not calibrated"
    if not without:
        info = load().info
        check_model(policy, info)
        without = [
            category.id
            for category in chosen
            if category.calibration
            and category.calibration.fitted_for != margin_digest(policy, category, info)
        ]
        why = "not calibrated for the present wording and model"
    if without:
        raise Misconfigured(
            f"{' and '.join(without)}: {why}, so what is shown is no probability, and `block` "
            f"would only ask for review; run `imagewarden policy calibrate` first, or give --force"
        )


def _diff(file: Path, old: str, new: str) -> Iterator[str]:
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    for line in difflib.unified_diff(before, after, str(file), str(file), n=2):
        yield line if line.endswith("\n") else line + "\n"
