"""Pairs of images of one scene whose geometry is known: a homography, or cameras and the motion between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gate_lightning.structures.batches import ImageBatch

__all__ = ["RelativePose", "ViewBatch", "ViewPair"]


@dataclass(frozen=True)
class RelativePose:
    """Cameras of two images and the motion between them.

    Attributes:
        source_camera, target_camera: (3, 3) float64 intrinsics in pixels of the files, centres at integers.
        rotation: (3, 3) float64.
        translation: (3,) float64; a point X of the source's camera is rotation · X + translation of the target's.
    """

    source_camera: Tensor
    target_camera: Tensor
    rotation: Tensor
    translation: Tensor


@dataclass(frozen=True)
class ViewPair:
    """Two images of one scene.

    Coordinates are pixels of the image files, counted as in `Pair`.

    Attributes:
        source, target: sample ids of the images.
        source_size, target_size: (H, W) of the files.
        homography: (3, 3) float64 from pixels of the source to pixels of the target, or None.
        pose: cameras and motion, or None.
        group: part of the data set that the pair is also averaged in; "" for none.
    """

    source: str
    target: str
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    homography: Tensor | None = None
    pose: RelativePose | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if (self.homography is None) == (self.pose is None):
            raise ValueError(f"{self.source} → {self.target}: give a homography or a pose")


@dataclass(frozen=True)
class ViewBatch(ImageBatch):
    """A batch of images with their keypoints.

    Attributes:
        keypoints: per image (N, 2) float64 x, y in pixels of the file.
        descriptors: per image (N, C) float32 what the detector says of its keypoints, or None where it says nothing.
    """

    keypoints: tuple[Tensor, ...]
    descriptors: tuple[Tensor | None, ...]
