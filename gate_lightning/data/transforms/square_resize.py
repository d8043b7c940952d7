"""Images and masks as squares of fixed sizes, and annotations too small to train on."""

from __future__ import annotations

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.samples import Sample, map_mask
from gate_lightning.data.transforms.basic import Resize, resize_mask
from gate_lightning.errors import ConfigError

__all__ = ["DropSmallAnnotations", "Square", "drop_small"]

#: side of the masks that ddpm-segmentation counts small annotations in
COUNTED_SIDE = 256


class Square(Resize):
    """Every image becomes ``image_size``² and every mask ``mask_size``²; the aspect of others is not kept.

    Args:
        image_size: side in pixels.
        mask_size: side in pixels; None leaves masks as they are.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, image_size: int, mask_size: int | None = None) -> None:
        super().__init__(image_size, with_mask=mask_size is not None)
        for name, value in (("image_size", image_size), ("size", mask_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a side in pixels, at least 1")
        self.mask_size = mask_size

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(image_size, image_size), whatever the image's own size."""
        side = max(round(self.short * ratio), 1)
        return side, side

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        assert self.mask_size is not None  # with_mask
        return resize_mask(mask, self.mask_size, self.mask_size)


def drop_small(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Classes with few pixels in a mask become ignored (ddpm-segmentation does so with training masks, below 20 of
    256²).

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
    """`drop_small` of a sample's mask.

    Args:
        pixels: see there.

    Raises:
        ConfigError: a negative number.
    """

    def __init__(self, pixels: int = 20) -> None:
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
            raise ConfigError(f"small_annotations is {pixels!r}; expected a number of pixels from 0")
        self.pixels = pixels

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with small annotations ignored; uses no random number."""
        return map_mask(sample, lambda mask: drop_small(mask, self.pixels))
