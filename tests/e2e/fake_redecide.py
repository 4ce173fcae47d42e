"""``imagewarden redecide`` by a model that knows nothing but colours: needs no torch."""

from __future__ import annotations

from pathlib import Path

import typer

from tests.fakes import FakeEncoder
from worker.command_line import by_hand, finish
from worker.commands.redecide import RedecideOptions, redecide
from worker.commands.render import Format


def main(policy: Path, rate: float) -> None:

    options = RedecideOptions(policy, "1h", everything=True, rate=rate)
    finish(redecide(by_hand([policy]), options, Format.TABLE, lambda _: FakeEncoder()))


if __name__ == "__main__":
    typer.run(main)
