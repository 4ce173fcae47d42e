"""The commands of ``imagewarden policy`` that show what a policy says, and prove an edit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worker.command_line import (
    Allowed,
    Caching,
    Formats,
    Labelled,
    Meanings,
    Source,
    SourceUntil,
    by_hand,
    fetching,
    finish,
    reported,
)
from worker.commands.render import chosen


def register(policy: typer.Typer) -> None:
    """Adds the commands to those of policies."""
    policy.command("explain")(explain)
    policy.command("prompts")(prompts)
    policy.command("test")(run_tests)
    policy.command("diff")(diff)
    policy.command("schema")(schema)
    policy.command("promote")(promote)


def explain(
    targets: Annotated[
        list[str], typer.Argument(help="Files, folders, URLs, or - for a list on standard input.")
    ],
    file: Annotated[
        Path | None, typer.Option("--policy", help="Policy file; else the first of the settings.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose thresholds apply.")] = None,
    format: Formats = None,
    allow: Allowed = None,
) -> None:
    """Say why images are decided on as they are, and what would change it.

    For each category: how loudly each prompt, contrast and exception spoke, the
    margin, the probability, the thresholds in force, what another action would
    take, and without which text the action would be another. The last is found
    by deciding again without the text.

    Exits with 0 when all images were explained, and with 3 when one could not
    be examined.
    """
    from worker.commands.policy_explain import explain_images

    settings = by_hand([file] if file else None, **fetching(allow))
    raise typer.Exit(finish(explain_images(settings, targets, tenant, chosen(format))))


def prompts(
    file: Annotated[Path, typer.Argument(help="Policy file; it is only read.")],
    labels: Labelled,
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only this one; by itself, all that there are images of."),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Phrasings to try, one a line: a prompt, or after - a contrast.",
        ),
    ] = None,
    label: Meanings = None,
    source: Source = None,
    source_until: SourceUntil = None,
    cache: Caching = True,
    allow: Allowed = None,
    format: Formats = None,
) -> None:
    """Say what each prompt adds or costs on labelled images, and what would help.

    Each text is left out, and is tried alone; each candidate is added by
    itself. What that does to the AUROC, and to the recall at the false alarms
    the category has now, comes with 95 % intervals that hold for all texts
    together, so that the best of many that do nothing is not taken for a gain:
    "helps" and "hurts" are said only of what the interval shows. Also shown are
    the images that do not show the category and score highest, with the prompt
    that fires on them.
    """
    from worker.commands.labelled import LabelOptions
    from worker.commands.policy_prompts import study_prompts

    settings = by_hand([file], **fetching(allow))
    options = LabelOptions(labels, label or (), source, source_until, cache)
    ids = category or []
    raise typer.Exit(
        reported(lambda: study_prompts(settings, file, options, ids, candidates, chosen(format)))
    )


def run_tests(
    files: Annotated[list[Path], typer.Argument(help="Policy files with `tests`.")],
    format: Formats = None,
) -> None:
    """Run the tests that policies carry.

    A test is an image and what must be decided on it. It is judged as a worker
    would judge it.

    Exits with 0 when all hold, with 1 when one fails, and with 2 when a policy
    is invalid, has no tests, or an image is missing.
    """
    from worker.commands.policy_test import test_policies

    raise typer.Exit(finish(test_policies(by_hand(files), files, chosen(format))))


def diff(
    old: Annotated[Path, typer.Argument(help="Policy file, or - for standard input.")],
    new: Annotated[Path, typer.Argument(help="Policy file, or - for standard input.")],
    format: Formats = None,
) -> None:
    """Say in words what changed between two versions of a policy.

    And what is certain to come of it. Looks at no images; `policy backtest`
    does. Exits as diff(1) does: with 0 when the policies are the same (files
    may still differ in comments and layout), with 1 when they differ, and with
    2 when one cannot be read. To compare with what is committed:

        git show HEAD:my-policy.yaml | imagewarden policy diff - my-policy.yaml
    """
    from worker.commands.policy_diff import diff as command

    raise typer.Exit(reported(lambda: command(old, new, chosen(format))))


def schema() -> None:
    """Print the JSON Schema of the policy language.

    Editors complete and explain keys by it. Save it, and begin a policy with
    the line  # yaml-language-server: $schema=policy.schema.json
    """
    import json

    from worker.policy_schema import policy_schema

    typer.echo(json.dumps(policy_schema(), indent=2, ensure_ascii=False))


class Promotion(StrEnum):
    """The modes of a category."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


def promote(
    file: Annotated[Path, typer.Argument(help="Policy file; modes are written into it.")],
    categories: Annotated[list[str], typer.Argument(help="Ids of categories.")],
    to: Annotated[Promotion, typer.Option(help="The mode they get.")] = Promotion.ENFORCE,
    force: Annotated[
        bool, typer.Option("--force", help="Enforce a category though it is not calibrated.")
    ] = False,
) -> None:
    """Turn on categories that were on trial, or put them on trial, or off.

    The mode is written into the file, and what changed there is printed.
    Comments and layout stay as they are. Refused are categories that are not
    calibrated for their present wording, and whatever would leave the policy
    invalid; nothing is written then.
    """
    from worker.commands.policy_promote import promote as command

    settings = by_hand([file])
    raise typer.Exit(reported(lambda: command(settings, file, categories, to.value, force=force)))
