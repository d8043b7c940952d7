"""JHMDB: 928 videos of people with 15 joints in every frame.

root/Rename_Images/<class>/<video>/<00001 …>.png
root/joint_positions/<class>/<video>/joint_positions.mat    pos_img: 2 × 15 × T, x and y counted from 1

The list names the videos that are measured, one a line: the folder of the frames, and optionally the mat file. Of paths
written on another machine only what begins with the names above counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.mat_files import read_mat
from gate_lightning.data.files.frames import open_frames
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.video.annotated import AnnotatedVideo
from gate_lightning.data.video.base import FrameResize, VideoDataModule
from gate_lightning.errors import DataError
from gate_lightning.structures import Video
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["JOINTS", "JHMDBDataModule"]

#: in the order of the mat files
JOINTS = (
    *("neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow"),
    *("right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle"),
)
_IMAGES, _POSITIONS = "Rename_Images", "joint_positions"


class JHMDBDataModule(VideoDataModule):
    """JHMDB (see the head of this module).

    Args:
        root: folder of ``Rename_Images`` and ``joint_positions``.
        list: file that names the videos, relative to the root; None for all that are there.
        size: side of the square that frames are resized to, aspect not kept.
        others: `VideoDataModule`'s arguments.

    Raises:
        DataError: no such folder.
    """

    layout = "Rename_Images/<class>/<video>/*.png, joint_positions/<class>/<video>/joint_positions.mat"
    splits = ("test",)
    card = DatasetCard(
        "JHMDB",
        prompt_simple="",
        prompt_fine="",
        citation="Jhuang et al., Towards Understanding Action Recognition, ICCV 2013",
        licence="non-commercial research",
    )

    def __init__(self, root: str, list: str | None = None, size: int = 320, **others: Any) -> None:
        super().__init__(FrameResize(size, None), **others)
        self.root = require_root(root, self.layout, _IMAGES)
        self.list = None if list is None else self.root / Path(list).expanduser()

    def read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        """The videos of the list.

        Raises:
            DataError: the list, frames or a mat file is missing or broken.
        """
        names = self._listed() if self.list is not None else self._found()
        return tuple(self._video(name) for name in names)

    def _listed(self) -> tuple[str, ...]:
        assert self.list is not None
        names = []
        for number, line in enumerate(lines_of(read_text(self.list)), start=1):
            if line.strip():
                names.append(_video_of(line.split()[0], f"{self.list}, line {number}"))
        if not names:
            raise DataError(f"{self.list} names no video")
        return tuple(names)

    def _found(self) -> tuple[str, ...]:
        mats = sorted((self.root / _POSITIONS).glob("*/*/joint_positions.mat"))
        if not mats:
            raise DataError(f"{self.root} has no {_POSITIONS}/<class>/<video>/joint_positions.mat")
        return tuple(path.parent.relative_to(self.root / _POSITIONS).as_posix() for path in mats)

    def _video(self, name: str) -> AnnotatedVideo:
        frames = open_frames(self.root / _IMAGES / name)
        path = self.root / _POSITIONS / name / "joint_positions.mat"
        found = np.asarray(read_mat(path, "pos_img")["pos_img"])
        wanted = (2, len(JOINTS), len(frames))
        if found.shape != wanted or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
            raise DataError(
                f"{path}: pos_img is {found.dtype} {found.shape}; expected finite numbers {wanted}, as there are "
                f"{len(frames)} frames in {frames.path}"
            )
        points = (found.transpose(2, 1, 0) - 1).astype(np.float32)
        ids = tuple(f"{_IMAGES}/{name}/{frames.name(index)}" for index in range(len(frames)))
        return AnnotatedVideo(Video(name, ids, frames.size, point_names=JOINTS, points=points), frames)


def _video_of(text: str, where: str) -> str:
    """``<class>/<video>`` of the folder of a video's frames."""
    inner = inner_path(text.replace("\\", "/").rpartition(f"{_IMAGES}/")[2], where)
    if inner.count("/") != 1:
        raise DataError(f"{where}: {text!r} is no path of a video; expected {_IMAGES}/<class>/<video>")
    return inner
