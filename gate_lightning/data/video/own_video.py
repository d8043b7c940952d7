"""``dataset=video``: a video of one's own, with the mask or the points of its first frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.files.frames import Frames, open_frames
from gate_lightning.data.video.annotated import AnnotatedVideo, MaskFiles, declared_objects
from gate_lightning.data.video.base import FrameResize, VideoDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Video
from gate_lightning.utils.text import read_csv

__all__ = ["OwnVideoDataModule"]


class OwnVideoDataModule(VideoDataModule):
    """One video, as ``split=test``.

    Args:
        frames: folder of frames (in natural order) or video file.
        masks: index mask of the first frame (0: background, 1 … n: objects, 255: unlabelled); or a folder of masks
            called as the frames are, ``00000.png`` … for a video file. Where all frames have one they are measured.
        points: CSV with the columns ``name,x,y`` of the first frame, in pixels from 0; or ``frame,name,x,y`` with
            the numbers of frames from 0, which are measured. In place of masks.
        short_side: of the frames that the backbone sees, in pixels; 0 keeps them as they are.
        multiple: of the longer side in pixels, rounded down.
        prompt: for all frames.
        others: `VideoDataModule`'s arguments.

    Raises:
        ConfigError: neither masks nor points, or both.
        DataError: no such video.
    """

    splits = ("test",)

    def __init__(
        self,
        frames: str,
        masks: str | None = None,
        points: str | None = None,
        short_side: int = 480,
        multiple: int = 32,
        prompt: str = "",
        **others: Any,
    ) -> None:
        super().__init__(FrameResize(short_side, multiple), **others)
        if (masks is None) == (points is None):
            raise ConfigError(
                "dataset=video needs what is to be followed: dataset.masks=<mask of the first frame, or folder>, or "
                "dataset.points=<csv of name,x,y>; one of them"
            )
        self.frames = open_frames(Path(frames).expanduser())
        self.masks = None if masks is None else Path(masks).expanduser()
        self.points = None if points is None else Path(points).expanduser()
        self.card = DatasetCard(self.frames.path.stem, prompt_simple=prompt, prompt_fine=prompt)

    def read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        """Read the only video there is.

        Raises:
            DataError: mask or points are missing, broken, empty, or do not fit the frames.
        """
        frames, name = self.frames, self.frames.path.stem
        ids = tuple(f"{name}/{frames.name(index)}" for index in range(len(frames)))
        if self.points is not None:
            names, points = read_points(self.points, len(frames), frames.size)
            return (AnnotatedVideo(Video(name, ids, frames.size, point_names=names, points=points), frames),)
        assert self.masks is not None
        paths, notes = _masks(self.masks, frames)
        reader = MaskFiles(paths, frames.size)
        first = reader(0)
        assert first is not None
        video = Video(name, ids, frames.size, declared_objects(first, paths[0]), reader)
        return (AnnotatedVideo(video, frames, paths, notes),)


def _masks(path: Path, frames: Frames) -> tuple[tuple[Path | None, ...], tuple[str, ...]]:
    """Mask of every frame, and notes."""
    count = len(frames)
    if not path.is_dir():
        return (path, *[None] * (count - 1)), ()
    found = [path / f"{frames.name(index)}.png" for index in range(count)]
    if not found[0].is_file():
        raise DataError(f"{found[0]} is missing; the first frame, {frames.place(0)}, needs a mask")
    missing = [one for one in found if not one.is_file()]
    if not missing:
        return tuple(found), ()
    notes = (
        (f"{path}: {len(missing)} of {count} frames have no mask, so J and F are not measured (first {missing[0]})",)
        if len(missing) < count - 1
        else ()
    )
    return (found[0], *[None] * (count - 1)), notes


def read_points(path: Path, count: int, size: tuple[int, int]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names (K) and float32 (count, K, 2) points of a CSV; NaN where a frame has none.

    Raises:
        DataError: the file is missing or broken, a row does not read so, or a point of the first frame, (height, width)
            ``size``, is not in it; names the row.
    """
    rows = read_csv(path, columns=("name", "x", "y"))
    found: dict[tuple[int, str], tuple[float, float]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        try:
            frame = int(row.get("frame") or 0)
            x, y = float(row["x"]), float(row["y"])
        except ValueError as error:
            raise DataError(f"{where}: {error}; expected a frame's number, and x and y in pixels") from None
        if not (np.isfinite([x, y]).all() and 0 <= frame < count):
            raise DataError(f"{where}: frame {frame}, ({x}, {y}); expected finite numbers and a frame below {count}")
        if frame == 0 and not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
            raise DataError(
                f"{where}: ({x}, {y}) is outside of the first frame, {size[1]}×{size[0]} pixels (width × height); are "
                "these the points of another video?"
            )
        if found.setdefault((frame, row["name"]), (x, y)) != (x, y):
            raise DataError(f"{where}: {row['name']!r} is there twice in frame {frame}")
    names = tuple(dict.fromkeys(name for _, name in found))
    if not names:
        raise DataError(f"{path} has a header and no points")
    points = np.full((count, len(names), 2), np.nan, dtype=np.float32)
    for (frame, name), place in found.items():
        points[frame, names.index(name)] = place
    return names, points
