"""``imagewarden policy check``: every problem of policy files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from worker.commands.render import Exit
from worker.policy import Policy
from worker.policy_yaml import InvalidPolicy, load_policy


def check(files: Sequence[Path]) -> Exit:
    """Prints every problem of every file, and what each file without one holds."""
    problems, wrong = 0, 0
    for file in dict.fromkeys(files):
        try:
            policy = load_policy(file, images=True)
        except InvalidPolicy as error:
            typer.echo(str(error), err=True)
            problems += len(error.problems)
            wrong += 1
        else:
            typer.echo(
                f"{file}: policy {policy.id} version {policy.version} for {policy.model}: "
                f"{_holds(policy)}: no problems"
            )
    if wrong:
        typer.echo(f"{_many(problems, 'problem')} in {_many(wrong, 'file')}", err=True)
    return Exit.USAGE if wrong else Exit.ALL_ALLOWED


def _holds(policy: Policy) -> str:
    modes = Counter(category.mode for category in policy.categories)
    others = [f"{count} {mode}" for mode, count in modes.items() if mode != "enforce"]
    among = f" ({', '.join(others)})" if others else ""
    parts = [f"{_many(len(policy.categories), 'category', 'categories')}{among}"]
    for count, what in ((len(policy.lists), "list"), (len(policy.tests), "test")):
        if count:
            parts.append(_many(count, what))
    return ", ".join(parts)


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
