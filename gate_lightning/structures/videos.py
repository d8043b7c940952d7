"""Videos whose first frame is annotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Video"]


@dataclass(frozen=True, eq=False)
class Video:
    """A video with masks of objects or with points.

    Coordinates are pixels of the frames' files; the centre of the first pixel is (0, 0).

    Attributes:
        name: unique in its data set; names files.
        frames: sample ids of the frames, in order.
        size: (H, W) of the files.
        objects: number n of objects, 1 … n in masks; 0 for a video with points.
        mask: frame's number → uint8 (H, W) numbers of objects, 0 for background and 255 for unlabelled, read when it is
            asked for; None for a frame without annotation. The first frame has one.
        point_names: names of the K points, () for a video with masks.
        points: (T, K, 2) float32 x, y; NaN where a point is not annotated. None for a video with masks.
    """

    name: str
    frames: tuple[str, ...]
    size: tuple[int, int]
    objects: int = 0
    mask: Callable[[int], NDArray[np.uint8] | None] | None = None
    point_names: tuple[str, ...] = ()
    points: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.frames), len(self.point_names), 2)
        if self.points is not None and self.points.shape != shape:
            raise ValueError(f"{self.name}: points are {self.points.shape}; expected {shape}")
        if (self.points is None) == (self.mask is None):
            raise ValueError(f"{self.name}: give masks or points")

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)
