"""What a policy file says besides its categories: lists of known images, limits, and tests."""

from __future__ import annotations

from typing import Final

from worker.policy import BlockRate, Decision, HashList, PolicyTest
from worker.policy_files import PolicyFiles, is_file
from worker.types import digest_of
from worker.yaml_texts import duration, label
from worker.yaml_values import Located, Problem

MAX_LISTS: Final = 64
MAX_TESTS: Final = 1000
MAX_DISTANCE: Final = 64  # of 256 bits; unlike images differ in about half of them
DISTANCE: Final = 31  # what the authors of PDQ hold to be the same image
_ACTIONS: Final = (Decision.ALLOW, Decision.REVIEW, Decision.BLOCK)


def lists_of(at: Located, files: PolicyFiles, problems: list[Problem]) -> tuple[HashList, ...]:
    """``problems`` gets those of the lists' own lines."""
    lists: list[HashList] = []
    for item in at.items(at_most=MAX_LISTS):
        of = item.fields(required=("id", "file", "action"), optional=("distance",))
        id_ = label(of["id"])
        if id_ and id_ in {one.id for one in lists}:
            of["id"].refuse(f"two lists are named `{id_}`; rename or remove one")
        hashes = files.hashes(of["file"], problems)
        lists.append(
            HashList(
                id=id_,
                action=of["action"].choice(_ACTIONS),
                distance=of["distance"].integer(0, MAX_DISTANCE, default=DISTANCE),
                file=of["file"].text(),
                digest=digest_of(sorted(hashes)),
                hashes=hashes,
            )
        )
    return tuple(lists)


def max_block_rate_of(at: Located) -> BlockRate | None:
    """Of ``limits``."""
    if not at.present:
        return None
    limit = at.fields(required=("max_block_rate",))["max_block_rate"]
    if not limit.present:
        return None
    of = limit.fields(required=("per", "share", "min_requests"))
    per_seconds = duration(of["per"], "1s", "1d")
    share = of["share"].number(0, 1)
    if share in (0.0, 1.0):
        of["share"].refuse(
            f"`share` is {share:g}, which brakes {'always' if share == 0 else 'never'}; write a "
            f"share above 0 and below 1"
        )
    min_requests = of["min_requests"].integer(1, 10**9, default=1)
    return BlockRate(share or 1.0, per_seconds or 1.0, min_requests)


def tests_of(at: Located, files: PolicyFiles, *, images: bool) -> tuple[PolicyTest, ...]:
    """If ``images``, those that are missing are problems."""
    tests = []
    for item in at.items(at_most=MAX_TESTS):
        of = item.fields(required=("image", "expect"), optional=("tenant",))
        path = files.path(of["image"])
        if images and path is not None and not is_file(path):
            of["image"].refuse(f"{path} is not there; add the image or remove the test")
        tests.append(
            PolicyTest(
                image=of["image"].text(),
                expect=of["expect"].choice(_ACTIONS),
                tenant=of["tenant"].text() or None,
            )
        )
    return tuple(tests)
