"""Resizing into a box, as mmsegmentation's recipes for ADE20K and Cityscapes do it, to the pixel.

Differs from `transforms.basic.Resize` in three ways, each needed for results that compare with published
ones: the longer side is limited too, images are interpolated bilinearly also where they shrink (no averaging), and
masks take the label at OpenCV's plain nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from gate_lightning.data.samples import Sample
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import ConfigError

__all__ = ["Fit", "RandomFit"]


class Fit(Resize):
    """As large as fits into a box, aspect kept. The rule for evaluation: there the mask keeps its size.

    Args:
        scale: two sides of the box in pixels; the longer one is for the longer side of the image.
        with_mask: resize the mask too.

    Raises:
        ConfigError: not two positive numbers.
    """

    def __init__(self, scale: Sequence[int], with_mask: bool = False) -> None:
        super().__init__(0, with_mask)
        sides = tuple(scale)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ConfigError(f"dataset.scale is {scale!r}; expected two numbers of pixels, for example [2048, 512]")
        self.long, self.short = max(sides), min(sides)

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) after resizing, the box enlarged by ``ratio``."""
        # the sides of the enlarged box are whole pixels, as in mmcv's RandomResize
        long, short = max(int(self.long * ratio), 1), max(int(self.short * ratio), 1)
        factor = min(long / max(height, width), short / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        if mask.shape == (height, width):
            return mask
        return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)


class RandomFit(Fit):
    """`Fit` into the box times a factor drawn uniformly from ``ratio_range``; image and mask.

    Args:
        scale: see `Fit`.
        ratio_range: smallest and largest factor, above 0.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(self, scale: Sequence[int], ratio_range: Sequence[float] = (0.5, 2.0)) -> None:
        super().__init__(scale, with_mask=True)
        values = tuple(ratio_range)
        if len(values) != 2 or not 0.0 < values[0] <= values[1]:
            raise ConfigError(f"dataset.ratio_range is {ratio_range!r}; expected two growing numbers above 0, or null")
        self.ratio_range = (float(values[0]), float(values[1]))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized sample."""
        height, width = sample.image.shape[:2]
        return self._to(sample, *self.size(height, width, rng.uniform(*self.ratio_range)))
