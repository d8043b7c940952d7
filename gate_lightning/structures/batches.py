"""Batches of images, of images with masks or with classes, and of labelled pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gate_lightning.structures.conditions import Conditions, Movable

__all__ = ["ClassificationBatch", "ImageBatch", "PixelBatch", "SegmentationBatch"]


@dataclass(frozen=True)
class ImageBatch(Movable):
    """Batch of images; subclasses add masks, keypoints, …

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1], RGB.
        conditions: see Conditions.
    """

    images: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class SegmentationBatch(ImageBatch):
    """A batch of images with masks.

    Attributes:
        masks: (B, H, W) int64 class indices, ``ignore_index`` where unlabelled.
    """

    masks: Tensor


@dataclass(frozen=True)
class ClassificationBatch(ImageBatch):
    """A batch of images with a class each.

    Attributes:
        labels: (B,) int64 class indices, ``ignore_index`` where an image only pads the share of a process.
    """

    labels: Tensor


@dataclass(frozen=True)
class PixelBatch(Movable):
    """Labelled pixels for members of an ensemble that are trained together, each on pixels of its own (M × P).

    Attributes:
        images: (M, P) int64 position of the image in the training split.
        positions: (M, P) int64 row · W + column of the pixel in the image's mask.
        labels: (M, P) int64 class indices; no ignored ones.
    """

    images: Tensor
    positions: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)
