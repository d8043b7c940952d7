"""Pairs of images with keypoints that correspond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from gate_lightning.structures.batches import ImageBatch
from gate_lightning.structures.conditions import Movable

__all__ = ["ImagePair", "Pair", "PairBatch"]


class ImagePair(Protocol):
    """A pair of images, with what all kinds of pairs have; see `Pair`."""

    @property
    def source(self) -> str:
        """Sample id of the first image."""

    @property
    def target(self) -> str:
        """Sample id of the second image."""

    @property
    def source_size(self) -> tuple[int, int]:
        """(H, W) of the first image's file."""

    @property
    def target_size(self) -> tuple[int, int]:
        """(H, W) of the second image's file."""

    @property
    def group(self) -> str:
        """Part of the data set that the pair is averaged in."""


@dataclass(frozen=True)
class Pair:
    """Two images with keypoints that correspond.

    Coordinates are pixels of the image files; the centre of the first pixel is (0, 0), that of the last (W - 1, H - 1).

    Attributes:
        source, target: sample ids of the images.
        source_points, target_points: (N, 2) float32 x, y of the keypoints that are visible in both, in one order.
        source_size, target_size: (H, W) of the files.
        source_box, target_box: x1, y1, x2, y2 of the object, or None.
        category: name of what the source shows.
        target_category: name of what the target shows; "" for the same.
        keypoint_ids: names of the N keypoints, or () where they have none.
        group: subset or part of the protocol that the pair is averaged in; "" for none.
        attributes: further facts, e.g. viewpoint_variation.
        target_visible: names of all keypoints that are visible in the target, whether in the source or not; None where
            that is not known.
    """

    source: str
    target: str
    source_points: Tensor
    target_points: Tensor
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    source_box: tuple[float, float, float, float] | None = None
    target_box: tuple[float, float, float, float] | None = None
    category: str = ""
    target_category: str = ""
    keypoint_ids: tuple[str, ...] = ()
    group: str = ""
    attributes: Mapping[str, int] = field(default_factory=dict)
    target_visible: frozenset[str] | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(self.source_points.shape), tuple(self.target_points.shape)}
        if len(shapes) > 1 or self.source_points.dim() != 2 or self.source_points.shape[1] != 2:
            raise ValueError(f"{self.source} → {self.target}: points are {sorted(shapes)}; give (N, 2) of both images")
        if self.keypoint_ids and len(self.keypoint_ids) != len(self):
            raise ValueError(
                f"{self.source} → {self.target}: {len(self.keypoint_ids)} keypoint_ids for {len(self)} points"
            )

    def __len__(self) -> int:
        """Number of keypoints."""
        return len(self.source_points)


@dataclass(frozen=True)
class PairBatch(Movable):
    """A batch of pairs of images, for training.

    Attributes:
        source, target: the B first and the B second images.
        pairs: the B pairs as they are in the files.
        source_points, target_points: (B, N, 2) x, y of their keypoints in pixels of ``source.images`` and
            ``target.images``, NaN where a pair has fewer than N.
    """

    source: ImageBatch
    target: ImageBatch
    pairs: tuple[Pair, ...]
    source_points: Tensor
    target_points: Tensor

    def __len__(self) -> int:
        return len(self.pairs)
