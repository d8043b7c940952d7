"""Masks of objects, or points, carried through a video from the first frame to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.metrics.video_points import PointDistances, point_distances
from gate_lightning.metrics.video_segmentation import FrameScores, frame_scores
from gate_lightning.ops.frame_cells import FrameCells
from gate_lightning.ops.point_maps import point_maps, points_of_maps
from gate_lightning.ops.propagation import Propagation, Propagator
from gate_lightning.structures import Video

__all__ = ["MaskTrack", "PointTrack", "Track", "VideoResult", "track_of"]


@dataclass(frozen=True)
class VideoResult:
    """Labels or points carried through a video, and how well.

    Attributes:
        name: of the video.
        frames: their number.
        scores: J and F, None where masks are not all annotated, or for points.
        points: (T, K, 2) x, y in pixels of the files, NaN where one was not found; None for masks.
        distances: from the annotated ones; None for masks, or where only the first frame has any.
    """

    name: str
    frames: int
    scores: FrameScores | None = None
    points: NDArray[np.float32] | None = None
    distances: PointDistances | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything that is not in the annotation."""
        plain: dict[str, Any] = {"name": self.name, "frames": self.frames}
        if self.scores is not None:
            plain |= {"J": self.scores.region.tolist(), "F": self.scores.outline.tolist()}
        if self.points is not None:
            plain["points"] = [
                [[float(x), float(y)] if np.isfinite([x, y]).all() else None for x, y in frame] for frame in self.points
            ]
        return plain

    @classmethod
    def of_json(cls, plain: dict[str, Any], video: Video) -> VideoResult:
        """The result that `as_json` described.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        if plain["frames"] != len(video):
            raise ValueError(f"it has {plain['frames']} frames, the video {len(video)}")
        if video.points is None:
            scores = FrameScores(np.array(plain["J"]), np.array(plain["F"])) if "J" in plain else None
            return cls(video.name, len(video), scores)
        nothing = [np.nan, np.nan]
        points = np.array([[place or nothing for place in frame] for frame in plain["points"]], dtype=np.float32)
        return cls(video.name, len(video), None, points, _distances(video, points))


class Track(ABC):
    """A video on its way; frames are given in order.

    Args:
        rule: of the propagation.
        video: that is followed.
        grid: cells of its frames.
    """

    def __init__(self, rule: Propagation, video: Video, grid: FrameCells) -> None:
        self.rule, self.video, self.grid = rule, video, grid
        self.next = 0
        self._propagate: Propagator | None = None

    def follow(self, features: Tensor) -> None:
        """Carry the labels on to the next frame, of which features (C, h, w) are given."""
        height, width = self.grid.cells
        features = features[:, :height, :width]
        if self._propagate is None:
            soft = self.first(features.device)
            self._propagate = Propagator(self.rule, features, soft)
        else:
            soft = self._propagate(features)
        self.read(self.next, soft)
        self.next += 1

    @abstractmethod
    def first(self, device: torch.device) -> Tensor:
        """Labels (K, h, w) of the first frame."""

    @abstractmethod
    def read(self, index: int, soft: Tensor) -> None:
        """Take the result of a frame from its labels (K, h, w)."""

    @abstractmethod
    def result(self) -> VideoResult:
        """Result of the whole video, once every frame has come."""


class MaskTrack(Track):
    """Masks of objects, carried from frame to frame.

    Args:
        write: takes a frame's number and its mask (H, W) uint8, of the size of the files.
        others: `Track`'s arguments.
    """

    def __init__(self, write: Callable[[int, NDArray[np.uint8]], None], *others: Any) -> None:
        super().__init__(*others)
        self._write = write
        self._scores: list[tuple[np.ndarray, np.ndarray]] = []
        self._measured = True

    def first(self, device: torch.device) -> Tensor:
        """One map per object, and one for the background."""
        return self.grid.labels_of(self._given(), self.video.objects).to(device)

    def read(self, index: int, soft: Tensor) -> None:
        """Write the mask, and measure it."""
        if index == 0:
            self._write(0, self._given())
            return
        found = self.grid.mask_of(soft, self.video.size)
        self._write(index, found)
        assert self.video.mask is not None
        truth = self.video.mask(index) if self._measured else None
        self._measured = truth is not None
        if truth is not None and index < len(self.video) - 1:
            self._scores.append(frame_scores(found, truth, self.video.objects))

    def result(self) -> VideoResult:
        """J and F of all frames but the first and the last, where all are annotated."""
        scores = None
        if self._measured and self._scores:
            region, outline = (np.stack(part) for part in zip(*self._scores, strict=True))
            scores = FrameScores(region, outline)
        return VideoResult(self.video.name, len(self.video), scores)

    def _given(self) -> NDArray[np.uint8]:
        assert self.video.mask is not None
        mask = self.video.mask(0)
        assert mask is not None
        return np.where(mask == IGNORE_INDEX, 0, mask).astype(np.uint8)


class PointTrack(Track):
    """Points of one video, carried from frame to frame."""

    def __init__(self, *others: Any) -> None:
        super().__init__(*others)
        self._points: list[NDArray[np.float32]] = []

    def first(self, device: torch.device) -> Tensor:
        """One map per point, and one for what is near none."""
        assert self.video.points is not None
        return point_maps(torch.from_numpy(self.video.points[0]).to(device), self._size, self.grid.cells)

    def read(self, index: int, soft: Tensor) -> None:
        """Read the points off; those of the first frame are given."""
        assert self.video.points is not None
        given = self.video.points[0]
        self._points.append(given if index == 0 else points_of_maps(soft, self._size).cpu().numpy())

    def result(self) -> VideoResult:
        """The points, and their distances."""
        points = np.stack(self._points)
        return VideoResult(self.video.name, len(self.video), None, points, _distances(self.video, points))

    @property
    def _size(self) -> tuple[int, int]:
        """(H, W) in pixels of the file that the cells cover."""
        height, width = (
            side * cells * self.grid.stride // seen
            for side, cells, seen in zip(self.video.size, self.grid.cells, self.grid.seen, strict=True)
        )
        return height, width


def track_of(
    rule: Propagation, video: Video, grid: FrameCells, write: Callable[[int, NDArray[np.uint8]], None]
) -> Track:
    """The track of a video with masks, which are written, or with points."""
    return PointTrack(rule, video, grid) if video.points is not None else MaskTrack(write, rule, video, grid)


def _distances(video: Video, points: NDArray[np.float32]) -> PointDistances | None:
    assert video.points is not None
    if not np.isfinite(video.points[1:]).any():
        return None
    return point_distances(video.point_names, points, video.points)
