"""Rounds in which each takes its turn, so that a change of the machine's pace meets all of them.

Ratios are ratios within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.peers.contenders import ARCHITECTURE, Contender
from tests.bench.peers.environments import Unavailable
from tests.bench.peers.turns import Turn
from worker.bench.results import Figure, Result, unit_of
from worker.bench.scenarios import KILOBYTES

PHOTOS = 200  # in each turn

_WANTED = {"times the plain loop": "≥ 1.5", "times clip-retrieval": "≥ 1", "times infinity": "≥ 1"}


def compare(
    contenders: Sequence[Contender],
    rounds: int,
    images: int,
    say: Callable[[str], None] = lambda told: None,
) -> list[Result]:
    """One result for each; ``failed`` says why one has no figures. Who fails once is not asked
    again."""
    turns: dict[str, list[Turn]] = {one.name: [] for one in contenders}
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for one in contenders:
            if one.name in failed:
                continue
            say(f"round {number} of {rounds}: {one.name}")
            try:
                turns[one.name].append(one.once(images))
            except Unavailable as reason:
                failed[one.name] = str(reason)
                say(f"{one.name}: {reason}")
    rates = {
        one.name: [turn.figures["images/s"] for turn in turns[one.name]]
        for one in contenders
        if one.name not in failed
    }
    return [
        Result(one.scenario, _conditions(one, images), {}, failed=failed[one.name])
        if one.name in failed
        else _result(one, contenders, turns[one.name], rates, images)
        for one in contenders
    ]


def _result(
    one: Contender,
    contenders: Sequence[Contender],
    turns: Sequence[Turn],
    rates: dict[str, list[float]],
    images: int,
) -> Result:
    figures = {
        name: Figure(unit_of(name), tuple(turn.figures[name] for turn in turns))
        for name in turns[0].figures
    }
    if one.ours:
        for peer in contenders:
            if not peer.ours and peer.name in rates:
                ratios = (a / b for a, b in zip(rates[one.name], rates[peer.name], strict=True))
                name = "the plain loop" if peer.name == "plain loop" else peer.name
                figures[f"times {name}"] = Figure("1", tuple(ratios))
    wanted = {name: limit for name, limit in _WANTED.items() if name in figures}
    conditions = {**_conditions(one, images), **turns[0].versions}
    return Result(one.scenario, conditions, figures, wanted)


def _conditions(one: Contender, images: int) -> dict[str, str]:
    return {
        "model": f"{ARCHITECTURE}, random weights",
        **one.conditions,
        "photos": f"{images}, about {KILOBYTES} KB",
    }
