"""Following what is drawn on the first frame of a video: the second tab of the page without its widgets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.data.files.frames import Frames
from gate_lightning.data.files.images import read_image
from gate_lightning.data.files.palette import default_palette
from gate_lightning.data.samples import Sample
from gate_lightning.data.video.base import FrameResize
from gate_lightning.errors import DataError
from gate_lightning.ops.frame_cells import FrameCells
from gate_lightning.ops.propagation import Propagation, Propagator
from gate_lightning.tools.app.clips import Clip, ClipFolder
from gate_lightning.tools.app.settings import Settings, video_command
from gate_lightning.tools.app.views import shown
from gate_lightning.tools.app.workbench import Workbench
from gate_lightning.utils.files import write_image
from gate_lightning.utils.seeding import data_generator
from gate_lightning.utils.videos import write_video
from gate_lightning.visualization.overlay import write_mask
from gate_lightning.visualization.videos import shrunk, tinted

__all__ = ["BRUSHES", "Followed", "VideoBench"]

#: colours of the objects that can be drawn
BRUSHES = default_palette(4)
_PALETTE = ((0, 0, 0), *BRUSHES)
#: pixels of the shorter side of frames that the backbone sees, at most: as in DAVIS's protocol
_SHORT = 480


@dataclass(frozen=True, eq=False)
class Followed:
    """A frame with what was followed to it.

    Attributes:
        index: of the frame.
        count: frames of the video.
        image: (h, w, 3) uint8.
    """

    index: int
    count: int
    image: NDArray[np.uint8]


class VideoBench:
    """Videos, shared by all tabs. Masks are those of ``task=video`` with the same settings.

    Args:
        workbench: features and settings.
        folder: keeps copies of what is dropped, masks and results.
        given: video of the command line; None for a generated one.

    Raises:
        DataError: that video cannot be read.
    """

    def __init__(self, workbench: Workbench, folder: Path, given: str | Path | None = None) -> None:
        self.workbench, self.clips, self.rule = workbench, ClipFolder(folder), Propagation()
        self.first = self.clips.example() if given is None else self.clips.given(given)

    def start(self, clip: Clip) -> NDArray[np.uint8]:
        """The first frame as it is shown."""
        return shown(clip.frames().read(0))

    def drawn(self, clip: Clip, layers: Sequence[NDArray[np.uint8]]) -> Path:
        """File of the mask that was drawn on the first frame.

        Args:
            clip: the video.
            layers: (h, w, 4) uint8 each, drawn with `BRUSHES` on the frame as it is shown.

        Raises:
            DataError: nothing is drawn.
        """
        height, width = clip.frames().size
        mask = np.zeros((height, width), np.uint8)
        for layer in layers:
            colours = layer[..., None, :3].astype(np.int32) - np.array(BRUSHES, np.int32)
            numbers = (colours**2).sum(axis=-1).argmin(axis=-1).astype(np.uint8) + 1
            numbers[layer[..., 3] < 128] = 0
            own = cv2.resize(numbers, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            mask = np.where(own > 0, own, mask).astype(np.uint8)
        if not mask.any():
            raise DataError("nothing is drawn on the first frame; paint an object with the brush, then follow it")
        path = clip.folder / "masks" / f"{hashlib.sha256(mask.tobytes()).hexdigest()[:8]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, mask, _PALETTE)
        return path

    def followed(self, clip: Clip, mask: Path, settings: Settings) -> Iterator[Followed]:
        """Every frame with the mask, as soon as it is known; masks and frames are written to `folder_of`.

        Raises:
            GateError: settings, or a frame, cannot be read; frames before it are written.
        """
        line, frames = self.workbench.words(settings), clip.frames()
        given = np.array(Image.open(mask))
        resize, result = FrameResize(self.short_side(frames)), self.folder_of(mask, settings)
        propagate: Propagator | None = None
        for index in range(len(frames)):
            image = frames.read(index)
            with self.workbench.features.describing(line) as describer:
                sample = resize(Sample(f"{clip.path.stem}/{frames.name(index)}", image), data_generator())
                features = describer.features_of(sample)
                height, width = sample.image.shape[:2]
                cells = FrameCells((height, width), describer.amalgamation.strides[0])
            rows, columns = cells.cells
            features = features[:, :rows, :columns]
            if propagate is None:
                propagate = Propagator(self.rule, features, cells.labels_of(given, int(given.max())).to(features))
                found = given
            else:
                found = cells.mask_of(propagate(features), frames.size)
            overlay = tinted(shrunk(image), shrunk(found), _PALETTE)
            for name in ("masks", "overlays"):
                (result / name).mkdir(parents=True, exist_ok=True)
            write_mask(result / "masks" / f"{frames.name(index)}.png", found, _PALETTE)
            write_image(result / "overlays" / f"{frames.name(index)}.png", Image.fromarray(overlay))
            yield Followed(index, len(frames), overlay)

    def video(self, clip: Clip, mask: Path, settings: Settings) -> Path:
        """File of a video for browsers, of the frames that `followed` has written."""
        frames, result = clip.frames(), self.folder_of(mask, settings)
        path = result / "followed.webm"
        images = (read_image(result / "overlays" / f"{frames.name(index)}.png") for index in range(len(frames)))
        write_video(path, images, frames.rate or 10.0)
        return path

    def command(self, clip: Clip, mask: Path, settings: Settings) -> str:
        """The command that follows the mask as the page does.

        Raises:
            GateError: settings cannot be read.
        """
        line = self.workbench.words(settings)
        with self.workbench.features.describing(line) as describer:
            prompt = describer.prompt
        return video_command(line, clip.path, mask, self.short_side(clip.frames()), prompt)

    def folder_of(self, mask: Path, settings: Settings) -> Path:
        """Folder of the results of a mask under these settings."""
        line = "\n".join(self.workbench.words(settings))
        return mask.with_suffix("") / hashlib.sha256(line.encode()).hexdigest()[:8]

    def short_side(self, frames: Frames) -> int:
        """Pixels of the shorter side that the backbone sees; 0 for frames as they are."""
        return _SHORT if min(frames.size) > _SHORT else 0
