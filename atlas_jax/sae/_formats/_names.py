"""What a release tells by the names of its folders and files, however the path to them is written."""

import os
import re
from pathlib import Path

LINKS = 40


def names(path: Path) -> tuple[str, ...]:
    """The absolute path of a file or folder under each name it goes by, links followed as far as they lead first.

    A link may be given that tells nothing and leads to a folder of a release, and a file of a release may be a link
    to a blob whose name tells nothing, as in the cache of the Hugging Face hub: whichever name tells counts.

    Example:
      >>> (tmp / "layer_3").mkdir()
      >>> (tmp / "mine").symlink_to("layer_3")
      >>> names(tmp / "mine") == (f"{tmp}/layer_3", f"{tmp}/mine")
      True
    """
    place = path.absolute()
    steps = [place]
    while place.is_symlink() and len(steps) < LINKS:
        place = place.parent / os.readlink(place)
        steps.append(place)
    followed = [step.parent.resolve() / step.name for step in reversed(steps)]
    return tuple(dict.fromkeys(name.as_posix() for name in [steps[-1].resolve(), *followed, *reversed(steps)]))


def told(pattern: str, path: Path) -> re.Match[str] | None:
    """The last match of a pattern in the first name of a path that has one.

    Example:
      >>> told(r"layer_(\\d+)", Path("/layer_1/runs/layer_20/params.npz"))[1]
      '20'
    """
    for name in names(path):
        if found := list(re.finditer(pattern, name)):
            return found[-1]
    return None
