"""Resizing to squares, and the removal of annotations that are too small to train on."""

from __future__ import annotations

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.samples import Sample, map_mask
from gate_lightning.data.transforms.basic import Resize, resize_mask
from gate_lightning.utils.checks import whole_number

__all__ = ["DropSmallAnnotations", "Square", "drop_small"]

#: side of the masks that ddpm-segmentation counts small annotations in
COUNTED_SIDE = 256


class Square(Resize):
    """Resize images to ``image_size``² and masks to ``mask_size``², aspect not kept.

    Args:
        image_size: side in pixels.
        mask_size: side in pixels; None leaves masks as they are.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, image_size: int, mask_size: int | None = None) -> None:
        super().__init__(whole_number(image_size, "image_size", 1), with_mask=mask_size is not None)
        self.mask_size = None if mask_size is None else whole_number(mask_size, "size", 1)

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(image_size, image_size) for images of any size."""
        side = max(round(self.short * ratio), 1)
        return side, side

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        assert self.mask_size is not None  # with_mask
        return resize_mask(mask, self.mask_size, self.mask_size)


def drop_small(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Mask whose classes with few pixels are ignored, as ddpm-segmentation's training masks (below 20 pixels of 256²).

    Args:
        mask: uint8 (H, W) class indices, 255 ignored.
        pixels: fewest pixels at 256²; scaled to the area of the mask. 0 drops nothing.

    Returns:
        The mask itself where nothing is dropped.
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    small = (counts > 0) & (counts * COUNTED_SIDE**2 < pixels * mask.size)
    if not small.any():
        return mask
    return np.where(np.append(small, False)[mask], np.uint8(IGNORE_INDEX), mask)


class DropSmallAnnotations:
    """Transform of samples by `drop_small`.

    Args:
        pixels: fewest pixels at 256².

    Raises:
        ConfigError: a negative number.
    """

    def __init__(self, pixels: int = 20) -> None:
        self.pixels = whole_number(pixels, "task.data.small_annotations")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with small annotations ignored; draws no random number."""
        return map_mask(sample, lambda mask: drop_small(mask, self.pixels))
