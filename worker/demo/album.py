"""A labelled set of photos that everybody has, to try the policy commands on.

``python -m worker.demo.album FOLDER`` writes it: a folder for each photo that comes in wheels, with
cuts of it. They are cuts of ten photos and no more, so whatever is measured on them is flattering.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageOps

from worker.demo.photos import jpeg, photos
from worker.errors import Misconfigured

_CUTS = 12
_SIDE = 320  # pixels, of the longer side: more than any of the models looks at


def write_album(folder: Path) -> int:
    """Writes ``FOLDER/NAME/1.jpg`` and on, the same at each call; how many there are. Raises
    ``Misconfigured`` where the wheels are missing, or the folder cannot be written."""
    count = 0
    try:
        for name, photo in photos().items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            chance = random.Random(name)
            for number in range(1, _CUTS + 1):
                (folder / name / f"{number}.jpg").write_bytes(jpeg(cut(photo, chance)))
                count += 1
    except OSError as error:
        raise Misconfigured(f"{folder} cannot be written ({error.strerror})") from error
    return count


def cut(photo: Image.Image, chance: random.Random) -> Image.Image:
    """Half to all of each side, from anywhere in the photo, mirrored as often as not: so unlike
    each other that perceptual hashes take few of them for the same image."""
    width, height = (round(side * chance.uniform(0.5, 1.0)) for side in photo.size)
    left = chance.randrange(photo.width - width + 1)
    top = chance.randrange(photo.height - height + 1)
    part = photo.crop((left, top, left + width, top + height))
    part.thumbnail((_SIDE, _SIDE))
    return ImageOps.mirror(part) if chance.random() < 0.5 else part


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m worker.demo.album FOLDER")
    try:
        print(f"{write_album(Path(sys.argv[1]))} images in {sys.argv[1]}")  # noqa: T201
    except Misconfigured as error:
        sys.exit(f"imagewarden: {error}")
