"""The language that policies are written in: a YAML file to a ``Policy``, or to all its problems.

Every key is known: one that is misspelt is refused, because an ignored key in a policy is a rule
that its author believes in and nobody follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, get_args

from worker.calibration_yaml import checked_thresholds
from worker.category_yaml import MAX_FRAMES, MAX_PROMPTS, Around, category_of, prompts_of
from worker.errors import Misconfigured
from worker.policy import Category, Decision, Override, Policy
from worker.policy_files import PolicyFiles
from worker.rules_yaml import lists_of, max_block_rate_of, tests_of
from worker.types import FramePlan, Views
from worker.yaml_texts import label
from worker.yaml_values import MAX_BYTES, Located, Problem, read_yaml

MAX_CATEGORIES: Final = 256


class InvalidPolicy(Misconfigured):
    """A policy file is refused. ``problems`` holds everything that is wrong with it, in the order
    of the file; the message has one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load_policy(path: Path, *, unsolved: bool = False, images: bool = False) -> Policy:
    """Read and validate a policy file and the files that it names; raises ``InvalidPolicy``.

    If ``unsolved``, a threshold with a target may lack its value, and is None then. If ``images``,
    a test whose image is missing is a problem: a worker needs none of them.
    """
    return parse_policy(read_policy(path), str(path), unsolved=unsolved, images=images)


def read_policy(path: Path) -> bytes:
    """The bytes of a policy file, or of one that is too large a little more than is allowed.
    Raises ``InvalidPolicy``."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check its name and its rights"
        raise InvalidPolicy([Problem(str(path), 1, 1, reason)]) from error


def parse_policy(
    raw: bytes,
    path: str,
    *,
    unsolved: bool = False,
    images: bool = False,
    files: PolicyFiles | None = None,
) -> Policy:
    """``load_policy`` of the content of ``path``, in whose folder it looks for what the policy
    names. ``files`` is told what was read there, of a refused policy too."""
    files = PolicyFiles(Path(path).parent) if files is None else files
    problems: list[Problem] = []
    root = read_yaml(raw, path, "the policy", problems)
    policy = _policy(root, files, problems, unsolved=unsolved, images=images)
    if problems:
        raise InvalidPolicy(problems)
    return policy


def _policy(
    root: Located, files: PolicyFiles, problems: list[Problem], *, unsolved: bool, images: bool
) -> Policy:
    of = root.fields(
        required=("version", "id", "model", "categories"),
        optional=(
            *("templates", "contrast", "on_error", "views", "max_frames"),
            *("tenants", "limits", "lists", "tests"),
        ),
    )
    plan = FramePlan(
        max_frames=of["max_frames"].integer(1, MAX_FRAMES, default=FramePlan().max_frames),
        views=of["views"].choice(get_args(Views)),
    )
    around = Around(prompts_of(of["contrast"]), plan.max_frames, files, unsolved)
    categories = _categories(of["categories"], around)
    return Policy(
        version=of["version"].integer(1, 2**31 - 1, default=1),
        id=label(of["id"]),
        model=of["model"].text(),
        templates=_templates(of["templates"]),
        on_error=of["on_error"].choice((Decision.REVIEW, Decision.ALLOW, Decision.BLOCK)),
        plan=plan,
        categories=categories,
        overrides=_overrides(of["tenants"], categories),
        lists=lists_of(of["lists"], files, problems),
        max_block_rate=max_block_rate_of(of["limits"]),
        tests=tests_of(of["tests"], files, images=images),
    )


def _templates(at: Located) -> tuple[str, ...]:
    templates = set()
    for item in at.items(at_most=MAX_PROMPTS):
        template = item.text()
        if template and template.count("{}") != 1:
            item.refuse(f"{template!r} must contain {{}} exactly once, where the prompt goes")
        templates.add(template)
    return tuple(sorted(templates)) or ("{}",)


def _categories(at: Located, around: Around) -> tuple[Category, ...]:
    categories = tuple(category_of(item, around) for item in at.items(at_most=MAX_CATEGORIES))
    if categories and all(category.mode == "off" for category in categories):
        at.refuse("every category is off, so every image would be allowed; turn one on")
    return categories


def _overrides(at: Located, categories: Iterable[Category]) -> tuple[Override, ...]:
    known = {category.id: category for category in categories if category.id}
    overrides = []
    for tenant_at, by_category in at.entries():
        for category_at, thresholds in by_category.entries():
            of = thresholds.fields(optional=("review", "block"))
            if (category := known.get(str(category_at.value))) is None:
                category_at.refuse(
                    f"`{tenant_at.value}` overrides the category `{category_at.value}`, which does "
                    f"not exist; use one of: {', '.join(known)}"
                )
                continue
            review = of["review"].number(0, 1)
            block = of["block"].number(0, 1)
            merged = checked_thresholds(
                of,
                category.thresholds.review if review is None else review,
                category.thresholds.block if block is None else block,
            )
            overrides.append(Override(str(tenant_at.value), category.id, merged))
    return tuple(sorted(overrides, key=lambda override: (override.tenant, override.category)))
