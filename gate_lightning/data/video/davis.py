"""DAVIS-2017: 30 validation, 60 training and 30 test-dev videos with masks of objects.

root/JPEGImages/480p/<video>/<00000 …>.jpg
root/Annotations/480p/<video>/<00000 …>.png      index masks: 0 background, 1 … n objects, 255 unlabelled
root/ImageSets/2017/{train,val,test-dev}.txt     names of the videos, one a line

Of test-dev videos only the first mask is public; the server of the benchmark measures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.files.frames import open_frames
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.video.annotated import AnnotatedVideo, MaskFiles, declared_objects
from gate_lightning.data.video.base import FrameResize, VideoDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Video
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["DAVIS2017DataModule"]


class DAVIS2017DataModule(VideoDataModule):
    """DAVIS-2017 (see the head of this module).

    Args:
        root: the folder ``DAVIS``.
        val: list of ``split=val``: ``val`` or ``train``, a file of ``ImageSets/2017``; all masks are needed. None for
            no such split.
        test: list of ``split=test``: ``test-dev``; only first masks are needed, others are measured where all are
            there. None for no such split.
        resolution: folder of frames and masks.
        short_side: of the frames that the backbone sees, in pixels; 0 keeps them as they are.
        multiple: of the longer side in pixels, rounded down.
        others: `VideoDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = "JPEGImages/480p/<video>/*.jpg, Annotations/480p/<video>/*.png, ImageSets/2017/*.txt"
    card = DatasetCard(
        "DAVIS-2017",
        prompt_simple="",
        prompt_fine="",
        citation="Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, 2017",
        licence="BSD",
    )

    def __init__(
        self,
        root: str,
        val: str | None = "val",
        test: str | None = None,
        resolution: str = "480p",
        short_side: int = 480,
        multiple: int = 32,
        **others: Any,
    ) -> None:
        super().__init__(FrameResize(short_side, multiple), **others)
        self.root, self.resolution = require_root(root, self.layout, f"JPEGImages/{resolution}"), resolution
        self.lists = {split: name for split, name in (("val", val), ("test", test)) if name is not None}
        if not self.lists:
            raise ConfigError("dataset.val and dataset.test are both null; name a list: dataset.val=val")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have a list."""
        return tuple(self.lists)

    def read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        """The videos of a split's list.

        Raises:
            DataError: the list, the frames of a video or a mask is missing.
        """
        path = self.root / "ImageSets/2017" / f"{self.lists[split]}.txt"
        names = [inner_path(line.strip(), str(path)) for line in lines_of(read_text(path)) if line.strip()]
        if not names:
            raise DataError(f"{path} names no video")
        return tuple(self._video(name, split) for name in names)

    def _video(self, name: str, split: str) -> AnnotatedVideo:
        frames = open_frames(self.root / "JPEGImages" / self.resolution / name)
        folder = self.root / "Annotations" / self.resolution / name
        masks = tuple(folder / f"{frames.name(index)}.png" for index in range(len(frames)))
        missing = [path for path in masks if not path.is_file()]
        needed = missing if split == "val" else [path for path in missing if path == masks[0]]
        if needed:
            raise DataError(f"{needed[0]} is missing ({len(missing)} of the {len(masks)} masks of {name})")
        # of a test video with a few masks nothing can be measured as the benchmark does
        paths: tuple[Path | None, ...] = (masks[0], *[None] * (len(masks) - 1)) if missing else masks
        reader = MaskFiles(paths, frames.size)
        first = reader(0)
        assert first is not None
        ids = tuple(f"JPEGImages/{self.resolution}/{name}/{frames.name(index)}" for index in range(len(frames)))
        video = Video(name, ids, frames.size, declared_objects(first, masks[0]), reader)
        return AnnotatedVideo(video, frames, paths)
