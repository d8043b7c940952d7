"""Videos of the page: those that were dropped on it, and a generated one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gate_lightning.data.files.frames import Frames, open_frames
from gate_lightning.data.files.images import IMAGE_SUFFIXES
from gate_lightning.data.scenes.dataset import split_seeds
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.video.scene_videos import camera, moved
from gate_lightning.errors import DataError
from gate_lightning.utils.files import write_image

__all__ = ["Clip", "ClipFolder"]

#: frames of the example, and their side in pixels
_COUNT, _SIDE = 16, 128


@dataclass(frozen=True)
class Clip:
    """A video that does not change.

    Attributes:
        path: folder of frames, or video file.
        folder: for what belongs to it: masks, results.
    """

    path: Path
    folder: Path

    def frames(self) -> Frames:
        """A reader of its frames."""
        return open_frames(self.path)


class ClipFolder:
    """Keeps copies of videos, so that a command can name them after the page is closed.

    A copy is ``<digest>/<name>``, or ``<digest>/frames/`` for frames that were dropped one by one.

    Args:
        folder: where copies are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def given(self, path: str | Path) -> Clip:
        """A video of this machine, which is not copied.

        Raises:
            DataError: it is missing, does not decode, or has one frame.
        """
        place = Path(path).expanduser()
        return _checked(Clip(place, self.folder / hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:8]))

    def keep(self, files: Sequence[str | Path]) -> Clip:
        """A copy of a video file, or of the frames of one.

        Raises:
            DataError: nothing, several videos, frames of other sizes, or what does not decode.
        """
        sources = [Path(file) for file in files]
        images = [one for one in sources if one.suffix.lower() in IMAGE_SUFFIXES and one.suffix.lower() != ".gif"]
        if len(images) != len(sources) and len(sources) > 1:
            raise DataError("expected one video file, or the frames of one video as images, and nothing else")
        digest = hashlib.sha256()
        for source in sources:
            digest.update(f"{source.name}\n".encode() + source.read_bytes())
        folder = self.folder / digest.hexdigest()[:8]
        place = folder / "frames" if images else folder / sources[0].name
        if not place.exists():
            new = folder / "new"
            new.mkdir(parents=True, exist_ok=True)
            for source in sources:
                shutil.copyfile(source, new / source.name)
            (new if images else new / sources[0].name).rename(place)
        try:
            return _checked(Clip(place, folder))
        except DataError as error:  # where the copy lies says nothing
            raise DataError(str(error).replace(f"{folder}/", "")) from error

    def example(self) -> Clip:
        """A generated video, whose objects move in front of each other."""
        (seed,) = split_seeds("test", 1)
        scene, folder = sample_scene(seed, "source", count=(2, 4)), self.folder / "example"
        for index in range(_COUNT):
            time = index / (_COUNT - 1)
            path = folder / "scene" / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, Image.fromarray(render(moved(scene, time), _SIDE, camera(seed, time)).image))
        return Clip(folder / "scene", folder)


def _checked(clip: Clip) -> Clip:
    frames = clip.frames()
    frames.check_sizes()
    if len(frames) < 2:
        raise DataError(f"{clip.path}: a video of one frame; there is no other to follow anything to")
    frames.read(0)
    return clip
