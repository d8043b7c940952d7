"""Images of the page: those that were dropped on it, and the examples of its first screen."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gate_lightning.data.correspondence.scene_pairs import CHANGES, changed_scene
from gate_lightning.data.files.images import read_image
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import LEAK_FREE_KINDS
from gate_lightning.errors import DataError
from gate_lightning.tools.matching import image_file
from gate_lightning.utils.files import write_image

__all__ = ["EXAMPLE_POINT", "KeptImage", "KeptImages"]

#: pixels of the largest image: similarities of a click are computed for every one of them
MOST_PIXELS = 50_000_000
#: seeds of the example and of the places of its objects in the others; side of all in pixels
_SEED, _OTHER, _SIDE = 0, 100, 256
#: x, y of the example: the horse's head
EXAMPLE_POINT = (172.0, 44.0)


@dataclass(frozen=True)
class KeptImage:
    """An image file that does not change.

    Attributes:
        path: the file.
        size: (height, width) in pixels, as shown.
    """

    path: Path
    size: tuple[int, int]

    @property
    def middle(self) -> tuple[float, float]:
        """x, y of its middle."""
        return (self.size[1] - 1) / 2, (self.size[0] - 1) / 2


class KeptImages:
    """Keeps copies of images, so that a command can name them after the page is closed.

    A copy is ``<digest>/<name>``: files of equal content and name are one, and the name is kept, for the noise of a
    image depends on it.

    Args:
        folder: where copies are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, path: str | Path) -> KeptImage:
        """A copy of an image file.

        Raises:
            DataError: it is missing, broken, no image, or too large.
        """
        source = Path(path)
        try:
            image_file(source, "image")
            height, width = read_image(source).shape[:2]
        except DataError as error:  # where a browser's file lies for the moment says nothing
            raise DataError(str(error).replace(str(source), source.name)) from error
        if height * width > MOST_PIXELS:
            raise DataError(
                f"{source.name} has {width} × {height} pixels; expected {MOST_PIXELS // 10**6} millions at most, for a "
                "click is compared with all of them. Make it smaller"
            )
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
        copy = self.folder / digest / source.name
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        return KeptImage(copy, (height, width))

    def examples(self) -> list[KeptImage]:
        """A generated scene, its objects elsewhere, these in the other domain, and the scene from another view."""
        first = sample_scene(_SEED, "source", LEAK_FREE_KINDS)
        scenes = {"scene": (first, None), **{change: changed_scene(first, change, _OTHER) for change in CHANGES}}
        made = []
        for name, (spec, view) in scenes.items():
            path = self.folder / "examples" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, Image.fromarray(render(spec, _SIDE, view).image))
            made.append(KeptImage(path, (_SIDE, _SIDE)))
        return made
